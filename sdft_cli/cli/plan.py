"""`sdft plan`: what a training run will need, before it is paid for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sdft_cli.cli.common import command, newest_dataset, say


@command
def plan(
    dataset: Annotated[Path | None, typer.Argument(help="A dataset folder. [default: the newest under data/]")] = None,
    profile: Annotated[str, typer.Option(help="A shipped profile, or a YAML file.")] = "qwen3.5-9b-64k",
    model: Annotated[str | None, typer.Option(help="Plan for this model instead of the profile's.")] = None,
    gpu: Annotated[
        str | None, typer.Option(help="A card (h100-80gb) or a size (80GB). [default: this machine's]")
    ] = None,
    rollout_tokens: Annotated[
        int | None, typer.Option(min=1, help="Rollout length for hours. [default: mean of the experts' turns]")
    ] = None,
    utilisation: Annotated[
        float, typer.Option(min=0.01, max=1, help="Share of the card's peak arithmetic that is reached; assumed.")
    ] = 0.35,
    fused: Annotated[
        bool, typer.Option("--fused/--no-fused", help="Does linear attention have fused kernels on the card?")
    ] = True,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a profile value: section.key=value. Repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every number as JSON.")] = False,
) -> None:
    """Predict memory by part, operations, hours and lost records of a training run; nothing is loaded or run.

    Example: sdft plan data/my-sessions --profile cpu-demo --gpu 24GB
    """
    from sdft_cli.config import load_train_config
    from sdft_cli.errors import DataError
    from sdft_cli.records import read_dataset
    from sdft_cli.report import terminal
    from sdft_cli.report.statistics import cap_losses

    config = load_train_config(profile, overrides or (), {"model": model})
    data = read_dataset(dataset or newest_dataset())
    rows = [r.row for r in data.train if r.row.teacher_prompt_tokens <= config.max_prompt_tokens]
    if not rows:
        raise DataError(
            f"No training record has a teacher prompt within {config.max_prompt_tokens} tokens: prepare more sessions, "
            "or raise max_prompt_tokens."
        )
    from sdft_cli.engine.models.backend_transformers import TransformersBackend
    from sdft_cli.engine.models.names import resolve_model
    from sdft_cli.engine.plan.model_shape import read_shape, ways_to_share
    from sdft_cli.engine.plan.plan import choose_way, find_gpu, machine_gpu, plan_of

    card = find_gpu(gpu) if gpu else machine_gpu()
    shape = read_shape(config, resolve_model(config.model, say))
    ways = ways_to_share(shape, config, TransformersBackend)
    sharing = choose_way(ways, rows, shape, config, card.usable if card else None)
    document = plan_of(rows, shape, config, sharing, card, rollout_tokens, utilisation, fused)
    counted = data.manifest["config"]["model"]
    if counted != config.model:
        document["assumptions"].append(f"lengths were counted with the tokenizer of {counted}")
    caps = {
        "max_prompt_tokens": config.max_prompt_tokens,
        "max_rollout_tokens": config.rollout.max_new_tokens,
        "max_seq_tokens": config.max_seq_tokens,
    }
    document["caps"] = [vars(loss) for loss in cap_losses(data, caps)]
    if as_json:
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        terminal.stdout().print(terminal.plan_report(document))
