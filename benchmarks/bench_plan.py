"""Peak memory of real training steps against what `sdft plan` predicts for them.

    python -m benchmarks.bench_plan [--json FILE] [--only NAME]

Every case is a process of its own on the CPU: a random Llama (or SmolLM2-135M), one short step (so that the optimiser's
state exists and every library is loaded), then one step of rollouts, backward and update with made-up tokens. Measured
is the peak of the resident memory in each phase above the same process before the model was made (Linux: `clear_refs`,
`VmHWM`).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SMALL = {"hidden": 256, "intermediate": 704, "layers": 8, "heads": 8, "kv": 4, "vocabulary": 8192}
CASES: dict[str, dict[str, Any]] = {
    "small, one long row": {**SMALL, "prompts": [3000], "new": 32},
    "small, checkpointing": {**SMALL, "prompts": [6000], "new": 32, "checkpointing": True},
    "small, four equal rows": {**SMALL, "prompts": [900] * 4, "new": 32},
    "small, padded rows": {**SMALL, "prompts": [500, 700, 900, 1000], "new": 32},
    "small, padded, checkpointing": {**SMALL, "prompts": [900, 1400, 1800, 2000], "new": 32, "checkpointing": True},
    "small, packed": {**SMALL, "prompts": [900] * 4, "shared": 700, "new": 16, "sharing": "packed"},
    "small, packed, checkpointing": {
        **SMALL,
        "prompts": [2000] * 4,
        "shared": 1500,
        "new": 16,
        "sharing": "packed",
        "checkpointing": True,
    },
    "narrow and deep": {**SMALL, "hidden": 128, "intermediate": 352, "layers": 24, "prompts": [2500], "new": 16},
    "wide and shallow": {**SMALL, "hidden": 1024, "intermediate": 4096, "layers": 2, "prompts": [2000], "new": 16},
    "wide, bf16": {
        **SMALL,
        "hidden": 1024,
        "intermediate": 2816,
        "layers": 4,
        "prompts": [1500],
        "new": 8,
        "dtype": "bfloat16",
    },
    "large vocabulary, chunks of 256": {
        **SMALL,
        "layers": 2,
        "vocabulary": 131072,
        "prompts": [200],
        "new": 4,
        "answers": 400,
    },
    "large vocabulary, one chunk": {
        **SMALL,
        "layers": 2,
        "vocabulary": 131072,
        "prompts": [200],
        "new": 4,
        "answers": 400,
        "chunk_rows": 512,
    },
    "large vocabulary, chunks of 64": {
        **SMALL,
        "layers": 2,
        "vocabulary": 131072,
        "prompts": [200],
        "new": 4,
        "answers": 400,
        "chunk_rows": 64,
    },
    "long rollouts of 16": {**SMALL, "layers": 4, "prompts": [400] * 16, "new": 64, "pass": 1000},
    "merged copy, large adapter": {
        **SMALL,
        "hidden": 768,
        "intermediate": 3072,
        "prompts": [300],
        "new": 16,
        "rank": 256,
    },
    "SmolLM2-135M": {"model": "smollm2-135m", "prompts": [1500], "new": 16},
    "SmolLM2-135M, checkpointing": {"model": "smollm2-135m", "prompts": [3000], "new": 16, "checkpointing": True},
}


def status(field: str) -> int:
    """Return a field of this process's memory, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {field}")


class Peaks:
    """Stands in for `Phases`: keeps the highest resident memory of each phase instead of its seconds."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        yield
        self.found[name] = max(self.found.get(name, 0), status("VmHWM"))


def train_config(case: dict[str, Any]) -> Any:
    """Return the configuration of a case."""
    from sdft_cli.config import load_train_config

    overrides = {
        "gradient_checkpointing": case.get("checkpointing", False),
        "dtype": case.get("dtype", "float32"),
        "max_seq_tokens": 65536,
        "max_prompt_tokens": 50000,
        "lora.rank": case.get("rank", 16),
        "rollout.max_new_tokens": case["new"],
        "rollout.max_tokens_per_pass": 1_000_000,
        "optim.max_tokens_per_pass": case.get("pass", 1_000_000),
        "distill.chunk_rows": case.get("chunk_rows", 256),
        "segment_tokens": case.get("segment", 2048),
        "prefix_sharing": case.get("sharing", "none"),
    }
    return load_train_config("cpu-demo", [f"{key}={json.dumps(value)}" for key, value in overrides.items()])


def model_config(case: dict[str, Any]) -> Any:
    """Return the transformers config of a case's model."""
    from transformers import AutoConfig, LlamaConfig

    if "model" in case:
        from sdft_cli.engine.models.names import resolve_model

        return AutoConfig.from_pretrained(resolve_model(case["model"]))
    return LlamaConfig(
        vocab_size=case["vocabulary"],
        hidden_size=case["hidden"],
        intermediate_size=case["intermediate"],
        num_hidden_layers=case["layers"],
        num_attention_heads=case["heads"],
        num_key_value_heads=case["kv"],
        max_position_embeddings=65536,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )


def trainer_of(case: dict[str, Any]) -> Any:
    """Make the model and its trainer."""
    import torch
    from accelerate import Accelerator
    from transformers import AutoModelForCausalLM

    from sdft_cli.engine.kernels.autocast import autocast_passes, leave_inputs
    from sdft_cli.engine.models.backend_transformers import TransformersBackend, attach_lora
    from sdft_cli.engine.train.sdft_step import Trainer

    config = train_config(case)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(model_config(case)).to(getattr(torch, config.dtype)).eval()
    base.generation_config.eos_token_id = None
    model: Any = attach_lora(base.requires_grad_(False), config)
    if base.dtype != torch.float32:  # as the plan counts it: on a GPU
        autocast_passes(base, base.dtype)
        leave_inputs(model)
    if config.gradient_checkpointing:
        model.enable_input_require_grads()
        base.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    backend = TransformersBackend(model, torch.device("cpu"))
    backend.sharing = case.get("sharing", "none")
    backend.segment_tokens = config.segment_tokens
    prompts: Any = SimpleNamespace(turn_end_id=0, turn_end_ids=(0,))  # the trainer asks it for the end of a turn only
    return Trainer(config, backend, prompts, Accelerator(cpu=True))


def step(trainer: Any, case: dict[str, Any], lengths: list[int], phases: Peaks) -> tuple[list[Any], int]:
    """Run one step; return its examples and the tokens of all trajectories."""
    import torch

    from sdft_cli.engine.passes.decode import Rollout
    from sdft_cli.engine.train.rollouts import sample_rollouts
    from sdft_cli.engine.train.sdft_step import Example

    vocabulary = trainer.backend.head.words
    torch.manual_seed(1)
    shared = torch.randint(1, vocabulary, (case.get("shared", 0),)).tolist()
    made = [[*shared, *torch.randint(1, vocabulary, (n - len(shared),)).tolist()] for n in lengths]
    record: Any = None
    examples = [Example(record, prompt, [*prompt, *range(1, 33)]) for prompt in made]
    with phases("rollout"):
        rollouts = sample_rollouts(trainer.backend, made, trainer.config.rollout, [vocabulary - 1], 0, 1)
    wanted = case.get("answers", trainer.config.rollout.max_new_tokens)  # longer than decoded: more rows of loss
    missing = [wanted - len(r.ids) for r in rollouts]
    rollouts = [Rollout([*r.ids, *[1] * n], False) for r, n in zip(rollouts, missing, strict=True)]
    scored = trainer.backward(examples, rollouts, phases)
    with phases("optimizer"):
        trainer.update(scored.loss)
    return [(e, r) for e, r in zip(examples, rollouts, strict=True)], sum(len(r.ids) for r in rollouts)


def measure(case: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Run a case in this process; return phase -> predicted and measured bytes."""
    tiny = {**SMALL, "hidden": 64, "intermediate": 128, "layers": 2, "vocabulary": 64, "new": 4}
    tiny |= {key: case[key] for key in ("sharing", "checkpointing", "dtype") if key in case}
    warm = trainer_of(tiny)
    step(warm, tiny, [8, 12], Peaks())
    del warm
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    base = status("VmRSS")
    trainer = trainer_of(case)
    step(trainer, {**case, "shared": 0}, [4] * len(case["prompts"]), Peaks())
    peaks = Peaks()
    made, _ = step(trainer, case, case["prompts"], peaks)
    found = {name: value - base for name, value in peaks.found.items()}
    measured = {
        "rollout": found["rollout"],
        "teacher": found["teacher"],
        "student and backward": max(found[name] for name in ("student", "loss", "backward")),
        "optimizer": found["optimizer"],
    }
    return {
        name: {"predicted": predicted, "measured": measured[name]} for name, predicted in predict(case, made).items()
    }


def predict(case: dict[str, Any], made: list[Any]) -> dict[str, int]:
    """Return phase -> bytes, as the plan computes them; the size of a tree is counted, not assumed."""
    from sdft_cli.engine.passes.packed import build_tree
    from sdft_cli.engine.plan import memory as memory
    from sdft_cli.engine.plan.model_shape import shape_of

    config = train_config(case)
    shape = shape_of(model_config(case), config)
    lengths = [memory.Lengths(len(e.student), len(e.teacher), len(r.ids)) for e, r in made]
    found = memory.step_memory(lengths, shape, config, case.get("sharing", "none"))
    phases = {phase.name: phase.total for phase in found.phases}
    if case.get("sharing") == "packed":
        answers = sum(x.rollout for x in lengths)
        trees = []
        for name in ("teacher", "student"):
            rows = [[*getattr(e, name), *r.ids] for e, r in made]
            trees.append(memory.packed([len(row) for row in rows], len(build_tree(rows))))
        prompts = [e.student for e, _ in made]
        tree = len(build_tree([prompt[:-1] for prompt in prompts]))
        widths = [len(prompt) for prompt in prompts]
        phases["rollout"] = memory.rollout_phase(shape, config, widths, case["new"], "packed", True, tree).total
        phases["teacher"] = memory.teacher_phase(shape, config, trees[0], answers, True, first=True).total
        phases["student and backward"] = memory.student_phase(shape, config, trees[1], answers, True).total
    return phases


def child(name: str) -> dict[str, dict[str, int]]:
    """Run a case in a fresh process with one thread and an allocator that gives memory back."""
    settings = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_plan", "--child", name],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    found: dict[str, dict[str, int]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Run the benchmark and print its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", help="cases whose name contains this")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(CASES[arguments.child])))
        return
    rows = []
    print("settings: one thread, CPU, glibc with MALLOC_MMAP_THRESHOLD_=65536; MB above the process without the model")
    print(f"{'case':34} {'phase':22} {'predicted':>9} {'measured':>9} {'ratio':>6}")
    for name in CASES:
        if arguments.only and arguments.only not in name:
            continue
        phases = child(name)
        for phase, value in phases.items():
            ratio = value["predicted"] / value["measured"]
            print(
                f"{name:34} {phase:22} {value['predicted'] / 1e6:9.1f} {value['measured'] / 1e6:9.1f} {ratio:6.2f}",
                flush=True,
            )
        peak = {side: max(value[side] for value in phases.values()) for side in ("predicted", "measured")}
        rows.append({"case": name, "phases": phases, **peak, "ratio": peak["predicted"] / peak["measured"]})
        print(
            f"{name:34} {'PEAK':22} {peak['predicted'] / 1e6:9.1f} {peak['measured'] / 1e6:9.1f} "
            f"{rows[-1]['ratio']:6.2f}",
            flush=True,
        )
    worst = max(rows, key=lambda row: max(row["ratio"], 1 / row["ratio"]))
    print(f"worst peak: {worst['case']}, predicted / measured {worst['ratio']:.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
