"""Seconds and peak memory of a step against prompt length and turns: prefix-shared, and turn by turn; the gradient.

    python -m benchmarks.bench_scaling [--prompts 2048 8192] [--turns 32] [--length 2048] [--answer 32]
        [--reference 32] [--segment 1024] [--threads 2] [--dtype float32] [--repetitions 3] [--only EXECUTOR]
        [--checkpointed] [--float64] [--json FILE]

SmolLM2-135M, LoRA of rank 64 on all seven projections with random weights, made-up ids. Turn i of G has the first (i +
1) / G of the session as its prompt and an answer of its own; the teacher (adapter off) sees a reference more. A step is
the teacher's states, the trainer's loss (reverse KL) and the backward pass. The executors: depth-first; packed; each
turn alone, keeping all activations; with `--checkpointed`, also each turn alone with gradient checkpointing.

First part: one turn, a prompt of each length (packed has nothing to share there). Second part: G turns. Each case runs
in a fresh process after a short step, the executors take turns; memory is the peak resident size above that after
loading (Linux; glibc with MALLOC_MMAP_THRESHOLD_=65536). The gradient of each executor is compared with that of the
turns alone, or, with `--float64`, all are compared with that of the turns alone in float64 (but for the loss, which is
fp32).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.side_by_side import spread
from sdft_cli.config import DistillSettings, load_train_config
from sdft_cli.engine.models.adapters import weights
from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.models.load import load_backend
from sdft_cli.engine.models.names import resolve_model
from sdft_cli.engine.objective.loss import distillation_loss
from sdft_cli.engine.passes.choose import choose_sharing
from sdft_cli.engine.passes.depth_first import depth_first_passes, depth_first_states
from sdft_cli.engine.passes.executors import response_states

MODULE = "benchmarks.bench_scaling"
CHECKPOINTED = "alone, checkpointed"
EXECUTORS = ("depth-first", "packed", "alone")

CHILD = {
    "TOKENIZERS_PARALLELISM": "false",
    # Freed buffers go back to the system at once, so that the peak is what was alive.
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "1",
}


@dataclass(frozen=True)
class Case:
    """One process: an executor and a step of so many turns; lengths in tokens."""

    executor: str
    turns: int
    length: int
    answer: int
    reference: int
    segment: int
    dtype: str
    threads: int


FROM_OPTIONS = ("answer", "reference", "segment", "dtype", "threads")


def load(case: Case) -> Backend:
    """Load the model with an adapter that looks trained."""
    checkpointing = str(case.executor == CHECKPOINTED).lower()
    wide = case.dtype == "float64"
    settings = [
        f"dtype={'float32' if wide else case.dtype}",
        f"gradient_checkpointing={checkpointing}",
        "lora.rank=64",
        "lora.alpha=128",
    ]
    backend = load_backend(load_train_config("cpu-demo", settings), "transformers", resolve_model("smollm2-135m"))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in backend.model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.01)
    if wide:
        backend.model.double()
    return backend


def session(case: Case) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """Return the prompts, the teacher's prompts and the answers."""
    generator = torch.Generator().manual_seed(1)

    def ids(count: int) -> list[int]:
        return torch.randint(100, 40_000, (count,), generator=generator).tolist()  # type: ignore[no-any-return]

    trunk = ids(case.length)
    prompts = [trunk[: case.length * (i + 1) // case.turns] for i in range(case.turns)]
    return prompts, [[*prompt, *ids(case.reference)] for prompt in prompts], [ids(case.answer) for _ in prompts]


def step(case: Case, backend: Backend) -> dict[str, float]:
    """Run the step; return the seconds of its parts."""
    prompts, shown, answers = session(case)
    weight = 1 / (case.answer * case.turns)
    seconds = {"teacher": 0.0, "student": 0.0}

    def loss(states: Tensor, targets: Tensor) -> Tensor:
        share = torch.full((len(states),), weight)
        return distillation_loss(states, targets, backend.head, share, DistillSettings()).loss

    start = time.perf_counter()
    if case.executor == "depth-first":
        with weights(backend.model, "base"):
            teacher = depth_first_states(backend, shown, answers, case.segment).split(case.answer)
        seconds["teacher"] = time.perf_counter() - start
        for (i,), states in depth_first_passes(backend, prompts, answers, case.segment):
            loss(states, teacher[i]).backward()  # type: ignore[no-untyped-call]
    else:
        if case.executor == "packed":
            choose_sharing(backend, "packed")
        passes = [range(case.turns)] if case.executor == "packed" else [[i] for i in range(case.turns)]
        for some in passes:
            before = time.perf_counter()
            replies = [answers[i] for i in some]
            with torch.no_grad(), weights(backend.model, "base"):
                targets = response_states(backend, [shown[i] for i in some], replies, 0)
            seconds["teacher"] += time.perf_counter() - before
            loss(response_states(backend, [prompts[i] for i in some], replies, 0), targets).backward()  # type: ignore[no-untyped-call]
    seconds["student"] = time.perf_counter() - start - seconds["teacher"]
    return seconds


def resident(field: str) -> float:
    """Return `VmRSS`, or `VmHWM`, its largest value since it was last cleared, of this process in MB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def run_child(case: Case, gradient: Path) -> dict[str, Any]:
    """Run a case in this process and write its gradient to a file."""
    torch.set_num_threads(case.threads)
    backend = load(case)
    step(replace(case, turns=2, length=64, answer=8, reference=8), backend)  # the first pass of a process is slow
    for parameter in backend.parameters():
        parameter.grad = None
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    base, start = resident("VmRSS"), time.perf_counter()
    parts = step(case, backend)
    seconds = time.perf_counter() - start
    over = resident("VmHWM") - base
    torch.save(torch.cat([p.grad.flatten() for p in backend.parameters() if p.grad is not None]), gradient)
    return {"peak_MB": over, "seconds": seconds, "parts": parts}


def in_child(case: Case, gradient: Path) -> dict[str, Any]:
    """Run `run_child` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", MODULE, "--child", json.dumps(asdict(case)), str(gradient)],
        env={**os.environ, **CHILD, "OMP_NUM_THREADS": str(case.threads)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def measure(case: Case, executors: Sequence[str], repetitions: int, judge: bool) -> dict[str, dict[str, Any]]:
    """Run all executors so often, in turns; return each one's seconds, peak memory and distance from the turns alone.

    `judge`: the distance is that from the turns alone in float64.
    """
    runs: dict[str, list[dict[str, Any]]] = {executor: [] for executor in executors}
    gradients: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(repetitions):
            for executor in executors:
                runs[executor].append(in_child(replace(case, executor=executor), Path(scratch) / "gradient.pt"))
                gradients[executor] = torch.load(Path(scratch) / "gradient.pt")
        if judge:
            in_child(replace(case, executor="alone", dtype="float64"), Path(scratch) / "gradient.pt")
            gradients["judge"] = torch.load(Path(scratch) / "gradient.pt")
    plain = gradients.get("judge", gradients.get("alone"))
    return {
        executor: {
            "seconds": spread([run["seconds"] for run in found]),
            "peak_MB": spread([run["peak_MB"] for run in found]),
            "gradient_difference": None
            if plain is None
            else float((gradients[executor] - plain).norm() / plain.norm()),
            "runs": found,
        }
        for executor, found in runs.items()
    }


def report(turns: int, length: int, found: dict[str, dict[str, Any]]) -> None:
    """Print a line for each executor, with its ratios to the turns alone."""
    print(f"\n{turns} turn(s), prompts of up to {length} tokens")
    print(f"  {'':<20} {'s min':>8} {'median':>8} {'max':>8} {'peak MB':>8} {'speed':>7} {'memory':>7} {'gradient':>9}")
    alone = found.get("alone")
    for executor, line in found.items():
        seconds, peak = line["seconds"], line["peak_MB"]["median"]
        text = f"  {executor:<20} {seconds['min']:8.1f} {seconds['median']:8.1f} {seconds['max']:8.1f} {peak:8.0f}"
        if alone:
            line["speed_over_alone"] = alone["seconds"]["median"] / seconds["median"]
            line["memory_over_alone"] = peak / alone["peak_MB"]["median"]
            text += f" {line['speed_over_alone']:7.2f} {line['memory_over_alone']:7.2f}"
            text += f" {line['gradient_difference']:9.1e}"
        print(text, flush=True)


def main() -> None:
    """Run the benchmark and print its numbers."""
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(run_child(Case(**json.loads(sys.argv[2])), Path(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, nargs="*", default=[2048, 8192], help="lengths of the first part")
    parser.add_argument("--turns", type=int, nargs="*", default=[32], help="numbers of turns of the second part")
    parser.add_argument("--only", action="append", choices=EXECUTORS, help="an executor; may be given more than once")
    parser.add_argument("--float64", action="store_true", help="compare gradients with those of float64")
    parser.add_argument("--checkpointed", action="store_true", help="also each turn alone with gradient checkpointing")
    for name, value in (("length", 2048), ("answer", 32), ("reference", 32), ("segment", 1024), ("repetitions", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    settings = {k: v for k, v in vars(arguments).items() if k != "json"}
    print(f"smollm2-135m, {settings}")
    extra = (CHECKPOINTED,) if arguments.checkpointed else ()
    every = (*EXECUTORS, *extra)
    chosen = [executor for executor in every if executor in (arguments.only or every)]
    parts = [(1, length, [executor for executor in chosen if executor != "packed"]) for length in arguments.prompts]
    parts += [(count, arguments.length, chosen) for count in arguments.turns]
    cases = []
    for turns, length, executors in parts:
        case = Case("", turns, length, *(getattr(arguments, name) for name in FROM_OPTIONS))
        found = measure(case, executors, arguments.repetitions, arguments.float64)
        report(turns, length, found)
        cases.append({"turns": turns, "length": length, "ways": found})
    single = {case["length"]: case["ways"] for case in cases if case["turns"] == 1}
    short, long = min(single, default=0), max(single, default=0)
    growth = {}
    if short < long:
        medians = {
            n: {executor: line["peak_MB"]["median"] for executor, line in single[n].items()} for n in (short, long)
        }
        growth = {executor: medians[long][executor] / medians[short][executor] for executor in medians[long]}
        print(f"\npeak memory, prompt of {long} / of {short}: {', '.join(f'{w} {r:.2f}' for w, r in growth.items())}")
    if arguments.json:
        found = {"model": "smollm2-135m", **settings, "cases": cases, "peak_growth": growth}
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
