"""`sdft train`: records -> LoRA adapter, by self-distillation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdft_cli.cli.common import RUNS_ROOT, command, newest, newest_dataset, say
from sdft_cli.cli.options import (
    DEFAULT_PROFILE,
    DatasetPath,
    Model,
    Overrides,
    Profile,
    given_settings,
    option,
    setting,
)

if TYPE_CHECKING:
    from sdft_cli.engine.train.run import Job


@command
def train(
    context: typer.Context,
    dataset: DatasetPath = None,
    out: Annotated[Path | None, option(help="The run folder to create.", left_out="runs/<dataset>-<profile>")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint of --out, or of the newest run.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing run folder.")] = False,
    profile_steps: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Write where the time of the first N steps goes to profile.json, and print it."
        ),
    ] = 0,
    init_adapter: Annotated[str | None, setting("train.init_adapter")] = None,
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
) -> None:
    """Train an adapter by Self-Distillation Fine-Tuning (arXiv 2601.19897).

    Example: sdft train data/my-sessions --profile cpu-demo --max-steps 30
    """
    flags = given_settings(context)
    if resume:
        job = _job_to_resume(dataset, profile, out, overrides or [], flags)
    else:
        job = _new_job(dataset, profile or DEFAULT_PROFILE, out, overrides or [], flags, overwrite)
    run_training(replace(job, profile_steps=profile_steps))
    if profile_steps:
        _show_profile(job.folder / "profile.json", profile_steps)
    say(f"Run written to {job.folder}; next: sdft merge {job.folder} --bf16")


def _show_profile(path: Path, asked: int) -> None:
    from sdft_cli.records.json_files import read_json
    from sdft_cli.report import terminal

    if not path.is_file():
        say(f"No profile was written: the run ended before {asked} steps.")
        return
    terminal.stdout().print(terminal.profile_table(read_json(path, "run again with --profile-steps")))


def _new_job(
    dataset: Path | None, profile: str, out: Path | None, overrides: list[str], flags: dict[str, Any], overwrite: bool
) -> Job:
    from sdft_cli.config import load_train_config
    from sdft_cli.engine.train.run import Job
    from sdft_cli.errors import UsageError
    from sdft_cli.records import read_dataset
    from sdft_cli.records.folders import check_output_folder
    from sdft_cli.run_folder import is_unfinished

    config = load_train_config(profile, overrides, flags)
    folder = dataset or newest_dataset()
    data = read_dataset(folder)
    stem = Path(profile).stem if profile.endswith((".yaml", ".yml")) else profile
    suffix = "" if config.objective == "sdft" else f"-{config.objective}"
    target = out or RUNS_ROOT / f"{folder.resolve().name}-{stem}{suffix}"
    if is_unfinished(target) and not overwrite:
        raise UsageError(
            f"{target} holds a run that was not finished: go on with `sdft train --resume --out {target}`, choose "
            "another --out, or add --overwrite to start again."
        )
    check_output_folder(target, "run.json", overwrite)
    return Job(config, data, target, overwrite=overwrite)


def _job_to_resume(
    dataset: Path | None, profile: str | None, out: Path | None, overrides: list[str], flags: dict[str, Any]
) -> Job:
    from sdft_cli.config import resumed_config
    from sdft_cli.engine.train.run import Job
    from sdft_cli.errors import UsageError
    from sdft_cli.records import read_dataset
    from sdft_cli.run_folder import read_run_json

    if profile is not None:
        raise UsageError("--resume takes the run's own profile: leave --profile out.")
    target = out or newest(RUNS_ROOT, "run.json", "run", "run `sdft train` first, or name the run with --out.")
    if not (target / "run.json").is_file():
        raise UsageError(f"{target} is no run: name the folder of one with --out.")
    info = read_run_json(target)
    config = resumed_config(read_run_json(target, "config.json"), overrides, flags)
    done = (info.get("last_step") or {}).get("step", 0)
    if info.get("status") == "finished" and done >= config.optim.max_steps:
        raise UsageError(f"{target} is finished (step {done}): add --max-steps to go on, or start a new run.")
    folder = dataset or Path(str(info["dataset"]["path"]))
    if not (folder / "manifest.json").is_file():
        raise UsageError(
            f"The run's dataset {folder} is not there: name the folder, as in `sdft train DATASET --resume`."
        )
    return Job(config, read_dataset(folder), target, resume=True)


def run_training(job: Job) -> dict[str, Any]:
    """Train as `job` says, with a live view on stderr, and write the adapters' cards; return what `run.json` says."""
    from sdft_cli.cli.model_card import write_adapter_cards
    from sdft_cli.engine.train.run import start_training
    from sdft_cli.report.live import live_training

    result = start_training(job, say, lambda: live_training(job.config.optim.max_steps))
    write_adapter_cards(job.folder)
    return result
