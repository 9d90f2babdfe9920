"""`sdft train`: records -> LoRA adapter, by self-distillation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdft_cli.cli.common import RUNS_ROOT, command, newest_dataset, say

if TYPE_CHECKING:
    from sdft_cli.config import TrainConfig
    from sdft_cli.records import Dataset


@command
def train(
    dataset: Annotated[Path | None, typer.Argument(help="A dataset folder. [default: the newest under data/]")] = None,
    profile: Annotated[str, typer.Option(help="A shipped profile, or a YAML file.")] = "qwen3.5-9b-64k",
    model: Annotated[str | None, typer.Option(help="Train this model instead of the profile's.")] = None,
    backend: Annotated[str | None, typer.Option(help="auto, transformers or unsloth.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run folder to create. [default: runs/<dataset>-<profile>]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of adapter, order and rollouts.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a profile value: section.key=value. Repeatable.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing run folder.")] = False,
) -> None:
    """Train an adapter by Self-Distillation Fine-Tuning (arXiv 2601.19897).

    Example: sdft train data/my-sessions --profile cpu-demo --max-steps 30
    """
    from sdft_cli.config import load_train_config
    from sdft_cli.records import read_dataset
    from sdft_cli.records.folders import check_output_folder

    config = load_train_config(
        profile,
        overrides or (),
        {"model": model, "backend": backend, "optim.max_steps": max_steps, "seed": seed},
    )
    folder = dataset or newest_dataset()
    data = read_dataset(folder)
    target = (
        out or RUNS_ROOT / f"{folder.resolve().name}-{Path(profile).stem if profile.endswith('.yaml') else profile}"
    )
    check_output_folder(target, overwrite)
    run_training(config, data, target, overwrite)
    say(f"Run written to {target}; next: sdft merge {target} --bf16")


def run_training(config: TrainConfig, data: Dataset, target: Path, overwrite: bool = False) -> dict[str, Any]:
    """Check, load, train, and write the run folder, all of it or nothing. Returns the last step's metrics."""
    from sdft_cli.engine.backend import check_machine, choose_backend, load_backend, model_type_of
    from sdft_cli.engine.models import resolve_model
    from sdft_cli.engine.quiet import quiet_libraries

    check_machine(config)
    quiet_libraries()
    model = resolve_model(config.model, say)
    backend_name, why = choose_backend(config.backend, model_type_of(model, config.revision))
    say(f"Backend: {backend_name} ({why})")
    if backend_name == "unsloth":  # it patches transformers, so it has to be imported first
        from sdft_cli.engine.backend_unsloth import import_unsloth

        import_unsloth()

    import torch
    from accelerate import Accelerator

    from sdft_cli.engine.forward import choose_packing
    from sdft_cli.engine.runs import FORMAT, write_check_prompts, write_json
    from sdft_cli.engine.train import Trainer, check_prompts, check_records
    from sdft_cli.engine.train import train as run
    from sdft_cli.errors import UsageError
    from sdft_cli.prompts.chat import open_prompts
    from sdft_cli.records.folders import new_folder

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    if accelerator.num_processes > 1:
        raise UsageError("sdft train runs in one process: start it without `accelerate launch` or `torchrun`.")
    prompts = open_prompts(model, data.manifest, config.revision)
    check_records(data.train, config)
    loaded = load_backend(config, backend_name, model)
    say(choose_packing(loaded, config.prefix_sharing))
    trainer = Trainer(config, loaded, prompts, accelerator)
    with new_folder(target, overwrite) as scratch:
        write_json(scratch / "config.json", config.model_dump(mode="json"))
        write_check_prompts(scratch / "check_prompts.jsonl", check_prompts([*data.validation, *data.train], prompts))
        with _live(config.optim.max_steps) as report:
            last = run(trainer, data.train, scratch, report)
        write_json(
            scratch / "run.json",
            {
                "format": FORMAT,
                "backend": backend_name,
                "backend_reason": why,
                "model": config.model,
                "teacher_template": data.manifest["teacher_template"],
                "dataset": {
                    "name": data.path.resolve().name,
                    "fingerprint": data.manifest["fingerprint"],
                    "source": data.manifest["source"],
                },
                "last_step": last,
            },
        )
    return last


def _live(total: int) -> Any:
    from sdft_cli.report.terminal import live_training

    return live_training(total)
