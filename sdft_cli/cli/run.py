"""`sdft run`: from sessions to an evaluated model and its page, with one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdft_cli.cli.support import completion
from sdft_cli.cli.support.common import command, print_json
from sdft_cli.cli.support.options import AsJson, Overrides, Profile, ProjectFile, given_settings, option, setting
from sdft_cli.notices import say
from sdft_cli.places import RUNS_ROOT
from sdft_cli.stages.folders import name_of
from sdft_cli.stages.project import read_project


@command
def run(
    context: typer.Context,
    source: Annotated[
        str | None,
        typer.Argument(
            help="A trace file, a folder of them, or a Hub dataset id (owner/name).",
            show_default="the project file's source",
            autocompletion=completion.sources,
        ),
    ] = None,
    out: Annotated[Path | None, option(help="The folder to create.", left_out="runs/<source name>")] = None,
    resume: Annotated[
        bool, option("--resume", help="Go on where a run of --out stopped; finished stages are not done again.")
    ] = False,
    overwrite: Annotated[bool, option("--overwrite", help="Delete what --out holds, and start again.")] = False,
    as_json: AsJson = False,
    project: ProjectFile = None,
    ignore_plan: Annotated[
        bool, option("--ignore-plan", help="Train although the plan says that it does not fit the card.")
    ] = False,
    profile: Profile = None,
    model: Annotated[str | None, setting("train.model")] = None,
    max_steps: Annotated[int | None, setting("train.optim.max_steps")] = None,
    seed: Annotated[int | None, setting("train.seed")] = None,
    overrides: Overrides = None,
) -> None:
    """Prepare, plan, gate, train, merge, evaluate and report, in one folder; stops where a stage says stop.

    Settings are those of sdft.yaml, which `sdft init` writes. sdft-run.json in the folder says what was done, of what,
    and what it left. After a stop, a Ctrl-C or a kill, --resume goes on; training does from its newest checkpoint.

    Example: sdft run
    """
    from sdft_cli.errors import SdftError, UsageError
    from sdft_cli.stages import whole_run

    if resume and overwrite:
        raise UsageError("--resume goes on and --overwrite starts again: give one of them.")
    given = whole_run.Given(source, profile, tuple(overrides or ()), given_settings(context), ignore_plan)
    opened = read_project(project)
    folder = out or RUNS_ROOT / name_of(opened.source_of(source))
    whole = whole_run.resume(folder, given, opened) if resume else whole_run.start(folder, given, opened, overwrite)
    whole.tables = not as_json
    try:
        whole.run()
    except SdftError as error:
        say(whole_run.stopped_sentence(error, whole.manifest))
        raise
    if as_json:
        print_json(whole.document())
    say(f"Done in {whole.seconds:.0f} s: the page is {folder / 'report.html'}, the model {folder / 'run' / 'merged'}.")
