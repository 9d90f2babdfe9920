"""Backends and kinds of prefix sharing on the demo: the loss of each step on the same rollouts, and the time.

    python -m benchmarks.bench_backends [--side NAME ...] [--steps 5] [--records 8] [--sessions 72] [--threads 1]
                                        [--json FILE]

The rollouts are the expert's turns, cut to 24 tokens. Steps are the trainer's own (`Trainer.backward`,
`Trainer.update`) with the settings of the profile cpu-demo, from the same adapter. unsloth patches transformers when it
is imported, so each side runs in a process of its own, one after the other; loading is not timed. All sides are
compared with the first one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIDES = {
    "transformers": ("transformers", "none"),
    "unsloth": ("unsloth", "none"),
    "packed": ("transformers", "packed"),
    "depth-first": ("transformers", "depth_first"),
}
"""Name -> backend and `prefix_sharing`."""
ROLLOUT_TOKENS = 24


def prepare_data(folder: Path, sessions: int) -> Path:
    """Write the demo's example sessions and prepare them as the demo does; return the dataset folder."""
    from sdft_cli.config import PrepareConfig, build
    from sdft_cli.stages.prepare import run_preparation
    from sdft_cli.traces.examples import write_examples

    write_examples(folder / "sessions", sessions, 0)
    settings = {
        "source": str(folder / "sessions"),
        "model": "smollm2-135m",
        "max_seq_tokens": 1024,
        "max_prompt_tokens": 896,
        "max_rollout_tokens": 128,
        "validation_fraction": 0.2,
        "teacher_template": "repeat",
    }
    run_preparation(build(PrepareConfig, settings), folder / "data")
    return folder / "data"


def run_side(side: str, data_folder: Path, steps: int, records: int, threads: int) -> dict[str, Any]:
    """Run the steps of one side in this process; return its losses and seconds."""
    from sdft_cli.config import load_train_config

    name, sharing = SIDES[side]
    if name == "unsloth":
        from sdft_cli.engine.models.backend_unsloth import import_unsloth

        import_unsloth()
    import torch
    from accelerate import Accelerator

    from sdft_cli.engine.models.adapters import lora_layers
    from sdft_cli.engine.models.load import load_backend
    from sdft_cli.engine.models.names import resolve_model
    from sdft_cli.engine.objective.batches import Order
    from sdft_cli.engine.passes.choose import choose_sharing
    from sdft_cli.engine.passes.decode import Rollout
    from sdft_cli.engine.passes.timing import Phases
    from sdft_cli.engine.train.sdft_step import Trainer
    from sdft_cli.prompts.chat import open_prompts
    from sdft_cli.records import read_dataset

    torch.set_num_threads(threads)
    config = load_train_config("cpu-demo", [f"optim.turns_per_step={records}", "distill.divergence=reverse_kl"])
    data, model = read_dataset(data_folder), resolve_model(config.model)
    backend = load_backend(config, name, model)
    backend.segment_tokens = config.segment_tokens
    choose_sharing(backend, sharing)
    generator = torch.Generator().manual_seed(0)
    for _, layer in sorted(lora_layers(backend.model).items()):
        weight = layer.lora_A["default"].weight
        weight.data.copy_(torch.randn(weight.shape, generator=generator) / weight.shape[1] ** 0.5)
        layer.lora_B["default"].weight.data.zero_()
    prompts = open_prompts(model, data.manifest)
    trainer = Trainer(config, backend, prompts, Accelerator(cpu=not torch.cuda.is_available()))
    order = Order([r.row for r in data.train], config.optim, config.seed)
    losses, seconds, tokens = [], [], 0
    for number in range(1, steps + 1):
        examples = [trainer.example(data.train[i]) for i in order.step(number)]
        turns = [prompts.reference_ids(e.record) for e in examples]
        rollouts = [Rollout(ids[:ROLLOUT_TOKENS], len(ids) <= ROLLOUT_TOKENS) for ids in turns]
        tokens += sum(len(e.student) + len(e.teacher) + 2 * len(r.ids) for e, r in zip(examples, rollouts, strict=True))
        start = time.perf_counter()
        losses.append(trainer.backward(examples, rollouts, Phases()).loss)
        trainer.update(losses[-1])
        seconds.append(time.perf_counter() - start)
    ran = [backend.name, backend.sharing]
    return {"ran": ran, "losses": losses, "seconds": seconds, "tokens": tokens}


def in_child(side: str, data: Path, steps: int, records: int, threads: int) -> dict[str, Any]:
    """Run `run_side` in a process of its own."""
    numbers = [str(n) for n in (steps, records, threads)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_backends", "--child", side, str(data), *numbers],
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if tuple(found["ran"]) != SIDES[side]:
        raise SystemExit(f"{side} ran as {found['ran']}")
    return found


def report(found: dict[str, dict[str, Any]]) -> None:
    """Print losses, differences from the first side, and seconds."""
    first = next(iter(found))
    print("step" + "".join(f"{name:>14}" for name in found))
    for step, losses in enumerate(zip(*(side["losses"] for side in found.values()), strict=True), 1):
        print(f"{step:4d}" + "".join(f"{loss:14.8f}" for loss in losses))
    for name, side in found.items():
        pairs = zip(side["losses"], found[first]["losses"], strict=True)
        side["largest_difference"] = max(abs(a - b) for a, b in pairs)
        side["median_seconds"] = statistics.median(side["seconds"])
        print(
            f"{name:>14}: {side['median_seconds']:7.2f} s a step (median), largest difference of a loss from "
            f"{first}'s {side['largest_difference']:.1e} nats per token"
        )


def main() -> None:
    """Run the benchmark and print a table."""
    if sys.argv[1:2] == ["--child"]:
        name, data, *numbers = sys.argv[2:]
        print(json.dumps(run_side(name, Path(data), *map(int, numbers))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", action="append", choices=list(SIDES), help="may be given more than once; default all")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--records", type=int, default=8, help="of a step")
    parser.add_argument("--sessions", type=int, default=72)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    settings = {name: getattr(arguments, name) for name in ("steps", "records", "sessions", "threads")}
    print("settings", json.dumps(settings))
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_data(Path(folder), arguments.sessions)
        numbers = (arguments.steps, arguments.records, arguments.threads)
        found = {side: in_child(side, data, *numbers) for side in arguments.side or SIDES}
    report(found)
    if arguments.json:
        arguments.json.write_text(json.dumps({**settings, "sides": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
