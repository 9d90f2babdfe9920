"""Before a run is paid for: `sdft plan` says what it will need, `sdft doctor` whether machine and model are ready."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from sdft_cli.cli.support.common import command
from sdft_cli.cli.support.options import (
    DEFAULT_PROFILE,
    DatasetPath,
    Model,
    Overrides,
    Profile,
    ProjectFile,
    given_settings,
    option,
    setting,
)
from sdft_cli.notices import say
from sdft_cli.stages.folders import newest_dataset
from sdft_cli.stages.plan import UTILISATION, make_plan
from sdft_cli.stages.project import read_project


@command
def plan(
    context: typer.Context,
    dataset: DatasetPath = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every number as JSON.")] = False,
    rollout_tokens: Annotated[
        int | None, option(min=1, metavar="N", help="Rollout length for hours.", left_out="mean of the experts' turns")
    ] = None,
    gpu: Annotated[
        str | None, option(help="A card (h100-80gb) or a size (80GB).", left_out="this machine's", panel="GPU")
    ] = None,
    utilisation: Annotated[
        float,
        option(min=0.01, max=1, metavar="N", help="Share of the card's peak arithmetic that large products reach."),
    ] = UTILISATION,
    fused: Annotated[
        bool | None,
        option(
            "--fused/--no-fused",
            help="Does linear attention have fused kernels on the card?",
            left_out="what is installed here; with --gpu, yes",
        ),
    ] = None,
    profile: Profile = None,
    model: Model = None,
    backend: Annotated[str | None, setting("train.backend")] = None,
    overrides: Overrides = None,
    project: ProjectFile = None,
) -> None:
    """Predict memory by part, operations, hours and lost records of a training run; nothing is loaded or run.

    Example: sdft plan data/my-sessions --profile cpu-demo --gpu 24GB
    """
    from sdft_cli.records import read_dataset
    from sdft_cli.report import terminal

    config = read_project(project).train_config(profile, overrides or (), given_settings(context))
    data = read_dataset(dataset or newest_dataset())
    document = make_plan(config, data, gpu, rollout_tokens, utilisation, fused)
    if as_json:
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        terminal.stdout().print(terminal.plan_report(document))


@command
def doctor(
    context: typer.Context,
    chat_template: Annotated[
        str | None, option(help="A chat template of templates/chat/, or a file.", left_out="the model's own")
    ] = None,
    load: Annotated[
        bool, option("--load", help="Load the model's weights, and test the engine on them instead of a small model.")
    ] = False,
    gpu: Annotated[bool, option("--gpu", help="A GPU is wanted: fail without one.")] = False,
    profile: Profile = None,
    model: Model = None,
    overrides: Overrides = None,
) -> None:
    """Check this machine, the engine on it, and a model: each line is ok, warn or fail, with what to do.

    The engine is tested on a small random model: nothing is downloaded, nothing trained. With --model it is said, too,
    what sdft makes of that model, and what would be refused with which sentence. The exit code is 0, or that of the
    first failure.

    Example: sdft doctor --model HuggingFaceTB/SmolLM2-135M-Instruct --profile cpu-demo
    """
    from sdft_cli.config import load_train_config
    from sdft_cli.errors import UsageError

    config = load_train_config(profile or DEFAULT_PROFILE, overrides or (), given_settings(context))
    if (load or chat_template) and model is None:
        raise UsageError("--load and --chat-template are about a model: name it with --model.")
    from sdft_cli.engine.models.quiet import quiet_libraries

    quiet_libraries()
    from sdft_cli.engine.doctor.examine import Question, examine
    from sdft_cli.engine.models.names import resolve_model
    from sdft_cli.report import terminal

    named = None if model is None else resolve_model(config.model, say)
    code = 0
    for found in examine(Question(config, named, chat_template, load, gpu)):
        terminal.stdout().print(terminal.finding_line(found.level, found.what, found.text), soft_wrap=True)
        code = code or found.code
    if code:
        raise typer.Exit(code)
