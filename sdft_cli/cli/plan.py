"""Before a run is paid for: `sdft plan` says what it will need, `sdft doctor` whether machine and model are ready."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sdft_cli.cli.support import completion
from sdft_cli.cli.support.common import command, print_json
from sdft_cli.cli.support.options import (
    DEFAULT_PROFILE,
    AsJson,
    DatasetPath,
    Model,
    Overrides,
    Profile,
    ProjectFile,
    given_settings,
    option,
    setting,
)
from sdft_cli.errors import UsageError
from sdft_cli.notices import ERROR, say
from sdft_cli.stages.folders import newest_dataset
from sdft_cli.stages.plan import NETWORK, UTILISATION, make_plan
from sdft_cli.stages.project import read_project


@command
def plan(
    context: typer.Context,
    dataset: DatasetPath = None,
    as_json: AsJson = False,
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
    gpus: Annotated[
        int | None,
        option(min=2, metavar="N", help="So many cards together: plan data parallel and FSDP2 too.", left_out="one"),
    ] = None,
    nodes: Annotated[int, option(min=1, metavar="N", help="Machines that these cards are in.")] = 1,
    network: Annotated[
        float | None,
        option(
            min=0.01,
            metavar="N",
            help="GB/s of each machine's network, with --nodes.",
            left_out=f"{NETWORK:g}",
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

    if nodes > 1 and (gpus is None or gpus % nodes):
        raise UsageError(f"--nodes {nodes} needs --gpus with a multiple of {nodes}: all cards of all machines.")
    if network is not None and nodes == 1:
        raise UsageError("--network is what several machines are connected by: say how many with --gpus and --nodes.")
    settings = read_project(project)
    config = settings.train_config(profile, overrides or (), given_settings(context))
    data = read_dataset(dataset or newest_dataset())
    document = make_plan(config, data, gpu, rollout_tokens, utilisation, fused, gpus, nodes, network or NETWORK)
    if as_json:
        print_json(document)
    else:
        terminal.stdout().print(terminal.plan_report(document))
    _say_next(document, data.path, settings.profile(profile))


def _say_next(plan: dict[str, Any], dataset: Path, profile: str) -> None:
    """Say what follows from a plan: to train, to lower what does not fit, or to name a card."""
    again, card = f"sdft plan {dataset} --profile {profile}", plan["gpu"]
    if card and "gpus" in plan and plan["gpus"]["launch"]:
        say(f"Next: {plan['gpus']['launch']} {dataset} --profile {profile}")
    elif card is None:
        say(f"Next: {again} --gpu 80GB")
    elif card["fits"]:
        say(f"Next: sdft train {dataset} --profile {profile}")
    else:
        change = next((one["change"].removeprefix("--set ") for one in plan["remedies"] if one["fits"]), None)
        say(f"Next: {again} --set {change}" if change else f"Next: several changes at once, or a larger card: {again}")


@command
def doctor(
    context: typer.Context,
    chat_template: Annotated[
        str | None,
        option(
            help="A chat template of templates/chat/, or a file.",
            left_out="the model's own",
            autocompletion=completion.chat_templates,
        ),
    ] = None,
    load: Annotated[
        bool, option("--load", help="Load the model's weights, and test the engine on them instead of a small model.")
    ] = False,
    gpu: Annotated[bool, option("--gpu", help="A GPU is wanted: fail without one.")] = False,
    as_json: AsJson = False,
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

    config = load_train_config(profile or DEFAULT_PROFILE, overrides or (), given_settings(context))
    if (load or chat_template) and model is None:
        raise UsageError("--load and --chat-template are about a model: name it with --model.")
    from sdft_cli.engine.models.quiet import quiet_libraries

    quiet_libraries()
    from sdft_cli.engine.doctor.examine import Question, examine
    from sdft_cli.engine.models.names import resolve_model
    from sdft_cli.report import terminal
    from sdft_cli.report.progress import progress_reporter

    named = None if model is None else resolve_model(config.model, say)
    found = []
    with progress_reporter():
        for one in examine(Question(config, named, chat_template, load, gpu)):
            found.append(one)
            if not as_json:
                terminal.stdout().print(terminal.finding_line(one.level, one.what, one.text), soft_wrap=True)
    if as_json:
        print_json([vars(one) for one in found])
    failed = [one for one in found if one.code]
    if failed:
        say(f"{ERROR}{len(failed)} of {len(found)} checks failed: do what their lines say, and run sdft doctor again.")
        raise typer.Exit(failed[0].code)
    say(f"Next: sdft {'plan' if named else 'prepare SOURCE'}{f' --model {model}' * bool(named)}")
