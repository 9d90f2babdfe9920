"""A step over the turns of one session, depth-first against turn by turn: peak memory, seconds, and the gradient.

    python -m benchmarks.bench_depth_first [--prompts 2048 8192] [--turns 4 16] [--length 2048] [--answer 32]
        [--reference 32] [--segment 1024] [--dtype float32] [--json FILE]

SmolLM2-135M, LoRA of rank 64 on all seven projections with random weights, made-up ids. Turn i of G has the first
(i + 1) / G of the session as its prompt and an answer of its own; the teacher (adapter off) sees a reference more. A
step is the teacher's states, the trainer's loss (reverse KL) and the backward pass. Three ways: depth-first; each turn
alone, keeping all activations; each turn alone with gradient checkpointing.

First part: one turn, a prompt of each length. Second part: G turns. Each case runs in a fresh process with one thread;
memory is the peak resident size above that after loading (Linux; glibc with MALLOC_MMAP_THRESHOLD_=65536). Processor
seconds are for a busy machine. The gradient of each way is compared with that of the turns alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdft_cli.config import DistillSettings, load_train_config
from sdft_cli.engine.adapters import weights
from sdft_cli.engine.backend import Backend, load_backend
from sdft_cli.engine.depth_first import depth_first_backward, depth_first_states
from sdft_cli.engine.forward import response_states
from sdft_cli.engine.loss import distillation_loss
from sdft_cli.engine.models import resolve_model

WAYS = ("depth-first", "alone", "alone, checkpointed")

CHILD = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Freed buffers go back to the system at once, so that the peak is what was alive.
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "1",
}


@dataclass(frozen=True)
class Case:
    """One process: a way to run a step of so many turns; lengths in tokens."""

    way: str
    turns: int
    length: int
    answer: int
    reference: int
    segment: int
    dtype: str


def load(case: Case) -> Backend:
    """Load the model with an adapter that looks trained."""
    checkpointing = str(case.way == "alone, checkpointed").lower()
    settings = [f"dtype={case.dtype}", f"gradient_checkpointing={checkpointing}", "lora.rank=64", "lora.alpha=128"]
    backend = load_backend(load_train_config("cpu-demo", settings), "transformers", resolve_model("smollm2-135m"))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in backend.model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.01)
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
    """Run the step; return processor seconds of its parts."""
    prompts, shown, answers = session(case)
    share = torch.full((case.answer,), 1 / (case.answer * case.turns))
    seconds = {"teacher": 0.0, "student": 0.0}

    def loss(states: Tensor, targets: Tensor) -> Tensor:
        return distillation_loss(states, targets, backend.head, share, DistillSettings()).loss

    start = time.process_time()
    if case.way == "depth-first":
        with weights(backend.model, "base"):
            teacher = depth_first_states(backend, shown, answers, case.segment).split(case.answer)
        seconds["teacher"] = time.process_time() - start
        depth_first_backward(backend, prompts, answers, lambda i, s: loss(s, teacher[i]), case.segment)
    else:
        for prompt, teachers, answer in zip(prompts, shown, answers, strict=True):
            before = time.process_time()
            with weights(backend.model, "base"):
                targets = response_states(backend, [teachers], [answer], 0)
            seconds["teacher"] += time.process_time() - before
            loss(response_states(backend, [prompt], [answer], 0), targets).backward()  # type: ignore[no-untyped-call]
    seconds["student"] = time.process_time() - start - seconds["teacher"]
    return seconds


def resident(field: str) -> float:
    """Return `VmRSS`, or `VmHWM`, its largest value since it was last cleared, of this process in MB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def run_child(case: Case, gradient: Path) -> dict[str, Any]:
    """Run a case in this process and write its gradient to a file."""
    torch.set_num_threads(1)
    backend = load(case)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    base, start = resident("VmRSS"), time.perf_counter()
    seconds = step(case, backend)
    wall = time.perf_counter() - start
    over = resident("VmHWM") - base
    found = torch.cat([p.grad.flatten() for p in backend.parameters() if p.grad is not None])
    torch.save(found, gradient)
    return {"peak_MB": over, "seconds": wall, "processor_seconds": sum(seconds.values()), "parts": seconds}


def in_child(case: Case, gradient: Path) -> dict[str, Any]:
    """Run `run_child` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_depth_first", "--child", json.dumps(asdict(case)), str(gradient)],
        env={**os.environ, **CHILD},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def compare(turns: int, length: int, settings: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run all ways over the same turns, print a line for each, and return them by way."""
    found, gradients = {}, {}
    for way in WAYS:
        case = Case(way, turns, length, settings.answer, settings.reference, settings.segment, settings.dtype)
        found[way] = in_child(case, folder / "gradient.pt")
        gradients[way] = torch.load(folder / "gradient.pt")
        line = found[way]
        print(
            f"{turns:3d} turns, prompts up to {length:5d}: {way:20s} {line['peak_MB']:7.0f} MB over base  "
            f"{line['processor_seconds']:7.1f} s processor  {line['seconds']:7.1f} s",
            flush=True,
        )
    plain = gradients["alone"]
    for way in WAYS:
        found[way]["gradient_difference"] = float((gradients[way] - plain).norm() / plain.norm())
    ours = found["depth-first"]
    for way in WAYS[1:]:
        other = found[way]
        print(
            f"    {way} / depth-first: memory {other['peak_MB'] / ours['peak_MB']:.2f}, processor seconds "
            f"{other['processor_seconds'] / ours['processor_seconds']:.2f}"
        )
    print(f"    relative difference of the gradient: {ours['gradient_difference']:.1e}")
    return found


def main() -> None:
    """Run the benchmark and print its numbers."""
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(run_child(Case(**json.loads(sys.argv[2])), Path(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, nargs="*", default=[2048, 8192], help="lengths of the first part")
    parser.add_argument("--turns", type=int, nargs="*", default=[4, 16], help="numbers of turns of the second part")
    parser.add_argument("--length", type=int, default=2048, help="the session's tokens in the second part")
    parser.add_argument("--answer", type=int, default=32)
    parser.add_argument("--reference", type=int, default=32)
    parser.add_argument("--segment", type=int, default=1024)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    settings = {k: v for k, v in vars(arguments).items() if k != "json"}
    print(f"smollm2-135m, 1 thread, {settings}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        lengths = {length: compare(1, length, arguments, folder) for length in arguments.prompts}
        turns = {count: compare(count, arguments.length, arguments, folder) for count in arguments.turns}
    growth: dict[str, float] = {}
    if len(lengths) > 1:
        short, long = min(lengths), max(lengths)
        growth = {way: lengths[long][way]["peak_MB"] / lengths[short][way]["peak_MB"] for way in WAYS}
        print(f"peak memory, prompt of {long} / of {short}: {', '.join(f'{w} {r:.2f}' for w, r in growth.items())}")
    if arguments.json:
        found = {"model": "smollm2-135m", "threads": 1, **settings, "by_prompt": lengths, "by_turns": turns}
        found["peak_growth"] = growth
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
