"""Stages of `gpu_check` that need other people's trainers: the same turns by TRL, and by unsloth.

python -m benchmarks.gpu_others --size tiny --folder MODEL --backend unsloth    # what the stage starts
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_check import (
    Check,
    Turns,
    distance,
    gradient_of,
    measured_step,
    options_of,
    random_model,
    session_turns,
    take,
    train_config,
)

ROOT = Path(__file__).resolve().parent.parent


def few_turns(check: Check) -> Turns:
    """Return some turns of the session of `shared`."""
    count = check.size.turns
    return session_turns(check).some(sorted({0, count // 3, 2 * count // 3, count - 1}))


def trl(check: Check) -> None:
    """Run some turns of `shared` by TRL's SDFTTrainer, one at a time, on the same model and the same rollouts.

    TRL works on the whole vocabulary and with KL(student||teacher), as here (`benchmarks/trl_side.py` says how its
    settings were chosen); prompts and answers are given, so nothing is sampled.
    """
    try:
        trainer = trl_trainer(check)
    except ImportError as error:
        check.tell("trl", skipped=f"not installed ({error})")
        return
    few = few_turns(check)
    ours = measured_step(check, few, "depth_first")
    expected = gradient_of(check)
    check.fresh()
    model, losses = check.backend.model, list[float]()
    trainer.current_gradient_accumulation_steps = len(few.answers)

    def run() -> None:
        for place in range(len(few.answers)):
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(model, trl_batch(check, few.some([place])))
            loss.backward()
            losses.append(float(loss.detach()))

    seconds = check.timed(run)
    found = {
        "turns": len(few.answers),
        "seconds": round(seconds, 2),
        "loss": sum(losses),
        "engine_seconds": ours["seconds"],
        "engine_loss": ours["loss"],
        "engine_peak_gb": ours.get("peak_gb"),
        **check.peak(),
    }
    apart = {"gradient_distance": distance(expected, gradient_of(check))}
    # In 16 bits TRL subtracts rounded logits, and its divergence may even be negative: told, not judged.
    check.tell("trl", **found, **(check.compared(apart) if check.dtype == torch.float32 else apart))


def trl_batch(check: Check, turn: Turns) -> dict[str, Tensor]:
    """Return a turn as `SDFTTrainer.compute_loss` takes it."""
    (student,), (teacher,), (answer,) = turn.students, turn.teachers, turn.answers
    rows = {"prompt": student, "completion": answer}
    ids = {f"{name}_ids": torch.tensor([row], device=check.device) for name, row in rows.items()}
    ids["teacher_input_ids"] = torch.tensor([[*teacher, *answer]], device=check.device)
    masks = {"prompt_mask": "prompt_ids", "completion_mask": "completion_ids"}
    masks["teacher_attention_mask"] = "teacher_input_ids"
    return {**ids, **{mask: torch.ones_like(ids[name]) for mask, name in masks.items()}}


def trl_trainer(check: Check) -> Any:
    """Return an SDFTTrainer over the model as it is loaded, its adapter on; raises ImportError without TRL."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    import datasets
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    from sdft_cli.engine.doctor.small import small_prompts

    rows = [{"prompt": [{"role": "user", "content": "a"}], "privileged_context": "b"}]
    with tempfile.TemporaryDirectory() as folder:
        settings = SDFTConfig(
            output_dir=folder,
            distillation_mode="full_logits",
            distillation_alpha=1.0,
            distillation_is_clip=None,
            num_loss_tokens_to_skip=0,
            num_generations=1,
            teacher_model_kind="base",
            per_device_train_batch_size=1,
            temperature=1.0,
            bf16=check.cuda,
            use_cpu=not check.cuda,
            gradient_checkpointing=check.config.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            report_to="none",
        )
        dataset = datasets.Dataset.from_list(rows)
        return SDFTTrainer(
            model=check.backend.model, args=settings, train_dataset=dataset, processing_class=small_prompts().tokenizer
        )


def unsloth(check: Check) -> None:
    """Run some turns of a smaller model by both backends, each in a process of its own, and compare their gradients.

    Without a GPU it is a text model: unsloth's CPU backend loads no other.
    """
    if importlib.util.find_spec("unsloth") is None:
        check.tell("unsloth", skipped="not installed")
        return
    from sdft_cli.engine.doctor.small import small_prompts

    with tempfile.TemporaryDirectory(dir=check.options.scratch) as name:
        folder = Path(name)
        random_model(check, check.size.merged_layers, text_only=not check.cuda).save_pretrained(folder)
        small_prompts().tokenizer.save_pretrained(folder)
        check.fresh()
        for backend in ("transformers", "unsloth"):
            found = _child(check, folder, backend)
            apart = {}
            if backend == "unsloth" and "failed" not in found:
                own, other = (torch.load(folder / f"{which}.pt") for which in ("transformers", "unsloth"))
                apart = check.compared({"gradient_distance": distance(other, own)})
            check.tell("unsloth", way=backend, **found, **apart)


def _child(check: Check, folder: Path, backend: str) -> dict[str, Any]:
    precision = ["--bf16"] * (check.dtype == torch.bfloat16)
    command = ["--size", check.options.size, "--folder", str(folder), "--backend", backend, *precision]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_others", *command],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:600]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measure(check: Check, folder: Path, name: str) -> dict[str, Any]:
    """Load a model by a backend, and run the turns as that backend shares them; the gradient goes into a file."""
    from sdft_cli.engine.models.load import backend_class, load_backend
    from sdft_cli.engine.passes.choose import choose_sharing

    check.config = train_config(check).model_copy(update={"backend": name, "profile": "gpu-check", "min_gpu_gb": None})
    backend_class(name).import_first()
    backend = load_backend(check.config, name, str(folder))
    generator = torch.Generator().manual_seed(0)
    for _, parameter in sorted((key.rpartition("model.layers")[2], p) for key, p in _adapter(backend.model)):
        parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator).to(parameter)
    take(check, backend)
    says = choose_sharing(backend, "auto")
    found = measured_step(check, few_turns(check), backend.sharing)
    torch.save(gradient_of(check).cpu(), folder / f"{name}.pt")
    return {"says": says, **{key: found[key] for key in ("sharing", "seconds", "loss", "peak_gb") if key in found}}


def _adapter(model: Any) -> list[tuple[str, Any]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def main(arguments: Sequence[str]) -> int:
    """Measure one backend, and print what was found as the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--backend", choices=("transformers", "unsloth"), required=True)
    options, rest = parser.parse_known_args(arguments)
    print(json.dumps(measure(Check(options_of(rest)), options.folder, options.backend)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
