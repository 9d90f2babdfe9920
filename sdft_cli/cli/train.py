"""`sdft train`: records -> LoRA adapter, by self-distillation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from sdft_cli.cli.support import completion
from sdft_cli.cli.support.common import command, print_json
from sdft_cli.cli.support.options import (
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
from sdft_cli.notices import say, speaks
from sdft_cli.stages.project import read_project
from sdft_cli.stages.train import job_to_resume, joined, new_job, run_training


@command
def train(
    context: typer.Context,
    dataset: DatasetPath = None,
    out: Annotated[
        Path | None,
        option(help="The run folder to create.", left_out="runs/<dataset>-<profile>", autocompletion=completion.runs),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint of --out, or of the newest run.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing run folder.")] = False,
    project: ProjectFile = None,
    profile_steps: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Write where the time of the first N steps goes to profile.json, and print it."
        ),
    ] = 0,
    as_json: AsJson = False,
    init_adapter: Annotated[str | None, setting("train.init_adapter", autocompletion=completion.finished_runs)] = None,
    profile: Profile = None,
    model: Model = None,
    backend: Annotated[str | None, setting("train.backend")] = None,
    objective: Annotated[str | None, setting("train.objective")] = None,
    max_steps: Annotated[int | None, setting("train.optim.max_steps")] = None,
    seed: Annotated[int | None, setting("train.seed")] = None,
    gate: Annotated[str | None, setting("train.gate.action")] = None,
    track: Annotated[
        list[str] | None, setting("train.trackers", "--track", help="Log here too, besides metrics.jsonl. Repeatable.")
    ] = None,
    overrides: Overrides = None,
    rollouts: Annotated[str | None, setting("train.rollout.source", "--rollouts", panel="Rollouts")] = None,
    vllm_url: Annotated[str | None, setting("train.rollout.vllm_url")] = None,
) -> None:
    """Train an adapter by Self-Distillation Fine-Tuning (arXiv 2601.19897).

    --resume goes on with the settings that the run was started with, whatever the project file says now. Several
    processes share a run that `torchrun` or `accelerate launch` starts.

    Example: sdft train data/my-sessions --profile cpu-demo --max-steps 30
    """
    flags = given_settings(context)
    with joined() as processes:
        if resume:
            job = job_to_resume(dataset, profile, out, overrides or [], flags)
        else:
            settings = read_project(project)
            config = settings.train_config(profile, overrides or [], flags)
            job = new_job(dataset, config, settings.profile(profile), out, overwrite)
        result = run_training(replace(job, profile_steps=profile_steps), processes=processes)
    if not speaks():
        return
    if as_json:
        print_json({"run": str(job.folder), **result})
    elif profile_steps:
        _show_profile(job.folder / "profile.json", profile_steps)
    say(f"Run written to {job.folder}; next: sdft merge {job.folder} --bf16")
    say(f"look at it: sdft report {job.folder}")


def _show_profile(path: Path, asked: int) -> None:
    from sdft_cli.records.json_files import read_json
    from sdft_cli.report import terminal

    if not path.is_file():
        say(f"No profile was written: the run ended before {asked} steps.")
        return
    terminal.stdout().print(terminal.profile_table(read_json(path, "run again with --profile-steps")))
