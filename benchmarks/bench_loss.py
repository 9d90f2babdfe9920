"""Time and memory of the loss step (forward and backward) against plain torch on full logits.

    python -m benchmarks.bench_loss [--rows 512] [--words 49152] [--hidden 576] [--chunk-rows 64] [--threads 1]
                                    [--repetitions 3] [--only reverse_kl] [--chunks 32,64,128,256] [--json FILE]

Both sides of a case, and the three matrix products that any exact step needs, take turns in fresh processes. A process
makes fp32 inputs, does one step while its memory is sampled, then times `--steps` steps. Medians over all processes.
Loss and gradient of the sides are compared. The head is frozen on both sides. `--chunks` times our side by chunk_rows.

reverse_kl is also compared with losses of other libraries, where they import here (else that is said): TRL's own on
full logits, which its SDFTTrainer divides by the temperature; unsloth_zoo's `fused_linear_jsd(beta=1.0)`, with its own
choice of chunks; and Liger's `LigerFusedLinearJSDLoss` (beta=1.0, no hard loss, its own size of chunks), not compiled,
as the other sides are not. Liger computes the head's gradient in any case.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdft_cli.config import DistillSettings

CASES: dict[str, dict[str, Any]] = {
    "reverse_kl": {},
    "forward_kl": {"divergence": "forward_kl"},
    "jsd": {"divergence": "jsd"},
    "top_k": {"support": "top_k"},
    "top_k_no_tail": {"support": "top_k", "top_k_tail": False},
}
OTHERS = ("trl", "unsloth_zoo", "liger")
"""Sides of other libraries, for reverse_kl."""
MIN_SPEEDUP, MAX_MEMORY = 1.8, 0.1
"""What is asked of reverse_kl on the default sizes."""


def make_inputs(rows: int, vocabulary: int, hidden: int) -> tuple[Any, Any, Any, Any]:
    """Make states of student and teacher, a head (logits of standard deviation 3), and token weights."""
    import torch

    generator = torch.Generator().manual_seed(0)
    student = torch.randn(rows, hidden, generator=generator)
    teacher = student + torch.randn(rows, hidden, generator=generator).mul_(0.3)
    weight = torch.randn(vocabulary, hidden, generator=generator).mul_(3 / hidden**0.5)
    return student.requires_grad_(), teacher, weight, torch.full((rows,), 1 / rows)


def outcome_log_probabilities(log_p: Any, log_q: Any, settings: DistillSettings) -> tuple[Any, Any]:
    """Restrict log-probabilities to the student's top-k, plainly."""
    import torch

    if settings.support == "full":
        return log_p, log_q
    chosen = log_p.topk(settings.top_k, dim=-1).indices
    few = [x.gather(-1, chosen) for x in (log_p, log_q)]
    if not settings.top_k_tail:
        return few[0].log_softmax(-1), few[1].log_softmax(-1)
    return tuple(torch.cat([x, torch.log1p(-x.exp().sum(-1, keepdim=True))], -1) for x in few)  # type: ignore


def plain(inputs: tuple[Any, Any, Any, Any], settings: DistillSettings) -> Any:
    """Compute the loss from full logits, for autograd."""
    import torch

    student, teacher, weight, share = inputs
    log_p = (student @ weight.T).log_softmax(-1)
    with torch.no_grad():
        log_q = (teacher @ weight.T).log_softmax(-1)
    log_p, log_q = outcome_log_probabilities(log_p, log_q, settings)
    if settings.divergence == "reverse_kl":
        return ((log_p.exp() * (log_p - log_q)).sum(-1) * share).sum()
    if settings.divergence == "forward_kl":
        return ((log_q.exp() * (log_q - log_p)).sum(-1) * share).sum()
    b, p, q = settings.jsd_beta, log_p.exp(), log_q.exp()
    log_m = (b * q + (1 - b) * p).log()
    return ((b * q * (log_q - log_m) + (1 - b) * p * (log_p - log_m)).sum(-1) * share).sum()


def other_loss(side: str) -> Callable[[tuple[Any, Any, Any, Any]], Any]:
    """Return another library's mean KL(student||teacher) over rows of equal weight.

    Raises:
        ImportError, MachineError: the library is not installed, or does not import here.
    """
    import torch

    if side == "trl":
        from trl.experimental.sdft.loss_utils import compute_full_logit_self_distillation_loss

        def full_logits(inputs: tuple[Any, Any, Any, Any]) -> Any:
            student, teacher, weight, share = inputs
            with torch.no_grad():
                scored = teacher @ weight.T / 1.0
            found = compute_full_logit_self_distillation_loss(student @ weight.T / 1.0, scored, distillation_alpha=1.0)
            return (found * share).sum()

        return full_logits
    if side == "unsloth_zoo":
        from sdft_cli.engine.models.backend_unsloth import import_unsloth

        import_unsloth()  # unsloth_zoo imports only behind it
        from unsloth_zoo.fused_losses.fused_linear import fused_linear_jsd

        return lambda inputs: fused_linear_jsd(inputs[0], inputs[2], inputs[1], inputs[2], beta=1.0)
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    liger = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=1.0, compiled=False)

    def call(inputs: tuple[Any, Any, Any, Any]) -> Any:
        labels = torch.zeros(len(inputs[0]), dtype=torch.long)  # only those equal to -100 would leave a row out
        return liger(inputs[0], inputs[2], inputs[1], inputs[2], labels)

    return call


def probe(side: str) -> dict[str, Any]:
    """Say why a library's side cannot run here; None if it can."""
    from sdft_cli.errors import MachineError

    try:
        other_loss(side)
    except (ImportError, MachineError) as error:
        return {"missing": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    return {"missing": None}


def make_step(job: dict[str, Any]) -> tuple[Callable[[], Any], Any]:
    """Return one step of a side, and the tensor whose gradient it fills."""
    import torch

    from sdft_cli.engine.models.head import Head
    from sdft_cli.engine.objective.loss import distillation_loss

    settings = DistillSettings(chunk_rows=job["chunk_rows"], **CASES[job["case"]])
    inputs = make_inputs(job["rows"], job["words"], job["hidden"])
    student, teacher, weight, share = inputs

    compute: Callable[[], Any] = lambda: plain(inputs, settings)  # noqa: E731
    if job["side"] == "ours":
        compute = lambda: distillation_loss(student, teacher, Head(weight), share, settings).loss  # noqa: E731
    elif job["side"] in OTHERS:
        other = other_loss(job["side"])
        compute = lambda: other(inputs)  # noqa: E731

    def step() -> Any:
        student.grad = None
        loss = compute()
        loss.backward()
        return loss.detach()

    logits, gradient = torch.empty(0), torch.empty(0)
    if job["side"] == "products":
        logits, gradient = torch.empty(job["rows"], job["words"]), torch.empty(job["rows"], job["hidden"])

    @torch.no_grad()
    def products() -> Any:
        for states in (student, teacher):
            torch.mm(states, weight.T, out=logits)
        torch.mm(logits, weight, out=gradient)
        return torch.zeros(())

    return products if job["side"] == "products" else step, student


def peak_over_base(step: Callable[[], Any]) -> float:
    """Run a step; return the most memory (MB) that the process had beyond what it has before, sampled."""
    import psutil

    process, stop = psutil.Process(), threading.Event()
    base = process.memory_info().rss
    peak = [base]

    def sample() -> None:
        while not stop.is_set():
            peak.append(max(peak.pop(), process.memory_info().rss))
            time.sleep(0.0005)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        step()
    finally:
        stop.set()
        sampler.join()
    return (peak[0] - base) / 1e6


def child(job: dict[str, Any]) -> None:
    """Measure one side and print a JSON line: its numbers, or why its library cannot run here."""
    if job["side"] in OTHERS:  # imported before torch's threads are set, and before it could patch anything in use
        told = probe(job["side"])
        if job.get("probe") or told["missing"]:
            print(json.dumps(told))
            return
    import torch

    torch.set_num_threads(job["threads"])
    make_step({**job, "rows": 8, "words": 1_024})[0]()  # loads code, which is no memory of a step
    step, student = make_step(job)
    memory, seconds = peak_over_base(step), []
    for _ in range(job["steps"]):
        start = time.perf_counter()
        loss = step()
        seconds.append(time.perf_counter() - start)
    gradient = 0.0 if student.grad is None else float(student.grad.norm())
    print(json.dumps({"seconds": seconds, "peak_MB": memory, "loss": float(loss), "gradient": gradient}))


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Measure one side in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_loss", "--child", json.dumps(job)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": str(job["threads"])},
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(jobs: dict[str, dict[str, Any]], repetitions: int) -> dict[str, dict[str, Any]]:
    """Measure sides in turns; return medians."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
    for _ in range(repetitions):
        for name, job in jobs.items():
            found[name].append(run(job))
    return {
        name: {
            "seconds": statistics.median(s for r in runs for s in r["seconds"]),
            "fastest": min(s for r in runs for s in r["seconds"]),
            "peak_MB": statistics.median(r["peak_MB"] for r in runs),
            "loss": runs[0]["loss"],
            "gradient": runs[0]["gradient"],
        }
        for name, runs in found.items()
    }


def available(settings: dict[str, Any]) -> list[str]:
    """Return the libraries that import here; say of the others why they do not."""
    missing = {side: run({**settings, "side": side, "probe": True})["missing"] for side in OTHERS}
    for side, reason in missing.items():
        if reason:
            print(f"{side} is left out: {reason}")
    return [side for side, reason in missing.items() if not reason]


def line(side: dict[str, Any]) -> str:
    """Return a side's numbers as text."""
    return f"{side['seconds']:7.3f} s (fastest {side['fastest']:.3f})  {side['peak_MB']:7.1f} MB over base"


def report(case: str, sides: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Print a case and return its ratios."""
    ours, other, products = sides["ours"], sides["plain"], sides["products"]
    ratios = {
        "speedup": other["seconds"] / ours["seconds"],
        "speedup_of_fastest": other["fastest"] / ours["fastest"],
        "speedup_if_products_were_all": other["seconds"] / products["seconds"],
        "beyond_products": (other["seconds"] - products["seconds"]) / (ours["seconds"] - products["seconds"]),
        "memory_share": ours["peak_MB"] / other["peak_MB"],
        "loss_difference": abs(ours["loss"] / other["loss"] - 1),
        "gradient_difference": abs(ours["gradient"] / other["gradient"] - 1),
    }
    for name in OTHERS:
        if name in sides:
            ratios[f"speedup_over_{name}"] = sides[name]["seconds"] / ours["seconds"]
            ratios[f"memory_share_of_{name}"] = ours["peak_MB"] / sides[name]["peak_MB"]
            ratios[f"loss_difference_to_{name}"] = abs(ours["loss"] / sides[name]["loss"] - 1)
            ratios[f"gradient_difference_to_{name}"] = abs(ours["gradient"] / sides[name]["gradient"] - 1)
    print(f"\n{case}")
    for name, side in sides.items():
        print(f"  {name:<11} {line(side)}")
    for name, value in ratios.items():
        print(f"  {name:<34} {value:.3g}")
    return {"sides": sides, **ratios}


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("rows", 512), ("words", 49_152), ("hidden", 576), ("threads", 1), ("steps", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--chunk-rows", type=int, default=DistillSettings().chunk_rows)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--only", choices=sorted(CASES))
    parser.add_argument("--chunks", default="", help="chunk sizes to time instead, e.g. 32,64,128")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child)
        return
    settings = {k: getattr(arguments, k) for k in ("rows", "words", "hidden", "chunk_rows", "threads", "steps")}
    print("settings", json.dumps({**settings, "dtype": "float32", "repetitions": arguments.repetitions}))
    result: dict[str, Any] = {"settings": settings, "repetitions": arguments.repetitions}
    if arguments.chunks:
        base = {**settings, "case": arguments.only or "reverse_kl", "side": "ours"}
        jobs = {n: {**base, "chunk_rows": int(n)} for n in arguments.chunks.split(",")}
        result["chunks"] = compare(jobs, arguments.repetitions)
        for name, side in result["chunks"].items():
            print(f"  chunk_rows {name:>4} {line(side)}")
    for case in [] if arguments.chunks else [arguments.only] if arguments.only else CASES:
        others = available(settings) if case == "reverse_kl" else []
        jobs = {side: {**settings, "case": case, "side": side} for side in ("ours", "plain", "products", *others)}
        result[case] = report(case, compare(jobs, arguments.repetitions))
    if "reverse_kl" in result:
        speedup, memory = result["reverse_kl"]["speedup"], result["reverse_kl"]["memory_share"]
        print(f"\nreverse_kl: {speedup:.2f} times faster (asked: at least {MIN_SPEEDUP})")
        print(f"reverse_kl: {memory:.3f} of the memory (asked: at most {MAX_MEMORY})")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
