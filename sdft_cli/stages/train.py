"""A dataset -> a run folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdft_cli.notices import say
from sdft_cli.places import RUN, RUNS_ROOT, meant_folder
from sdft_cli.stages.folders import newest, newest_dataset

if TYPE_CHECKING:
    from sdft_cli.config import TrainConfig
    from sdft_cli.engine.parallel.processes import Processes
    from sdft_cli.engine.train.loop import Observer
    from sdft_cli.engine.train.opening import Job


@contextmanager
def joined() -> Iterator[Processes | None]:
    """The processes of this run, if `torchrun` or `accelerate launch` started several; None: this one alone.

    The first one speaks and writes. An error in one of them ends all; the first says which it was.

    Raises:
        MachineError: another process failed or is gone.
    """
    from sdft_cli.engine.parallel.launch import launched
    from sdft_cli.notices import set_rank

    rank, count = launched()
    if count < 2:
        yield None
        return
    set_rank(rank)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # pages of addresses where a connection closes
    from sdft_cli.engine.parallel.processes import join

    processes = join()
    try:
        yield processes
        processes.close()
    except BaseException as error:
        raise processes.leave(error) from error


def new_job(dataset: Path | None, config: TrainConfig, profile: str, out: Path | None, overwrite: bool) -> Job:
    """Return the job of a new run, in `out` or in a folder under `runs/` named after dataset and profile."""
    from sdft_cli.engine.train.opening import Job
    from sdft_cli.errors import UsageError
    from sdft_cli.records import read_dataset
    from sdft_cli.records.folders import check_output_folder
    from sdft_cli.run_folder import is_unfinished

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


def job_to_resume(
    dataset: Path | None, profile: str | None, out: Path | None, overrides: list[str], flags: dict[str, Any]
) -> Job:
    from sdft_cli.config import changed_for_memory, resumed_config
    from sdft_cli.engine.train.opening import Job
    from sdft_cli.errors import UsageError
    from sdft_cli.records import read_dataset
    from sdft_cli.run_folder import read_run_json

    if profile is not None:
        raise UsageError("--resume takes the run's own profile: leave --profile out.")
    target = out or newest(RUNS_ROOT, RUN, "run", "run `sdft train` first, or name the run with --out.", "run")
    if not (target / "run.json").is_file():
        near = meant_folder(target, RUN, RUNS_ROOT, "name the folder of one with --out.")
        raise UsageError(f"{target} is no run: {near}")
    info = read_run_json(target)
    stored = read_run_json(target, "config.json")
    config = resumed_config(stored, overrides, flags)
    if changed := changed_for_memory(stored, config):
        say(f"Note: {', '.join(changed)} changed, so the run goes on equal up to rounding.")
    done = (info.get("last_step") or {}).get("step", 0)
    if info.get("status") == "finished" and done >= config.optim.max_steps:
        raise UsageError(f"{target} is finished (step {done}): add --max-steps to go on, or start a new run.")
    folder = dataset or Path(str(info["dataset"]["path"]))
    if not (folder / "manifest.json").is_file():
        raise UsageError(
            f"The run's dataset {folder} is not there: name the folder, as in `sdft train DATASET --resume`."
        )
    return Job(config, read_dataset(folder), target, resume=True)


def run_training(
    job: Job, began: Callable[[], None] = lambda: None, processes: Processes | None = None
) -> dict[str, Any]:
    """Train as `job` says, with a live view on stderr, and write the adapters' cards; return what `run.json` says.

    `began` is called when the gate and all checks are behind it, before the first step. `processes`: those of `joined`,
    of which the first one shows, writes and returns something.
    """
    from sdft_cli.engine.train.run import start_training
    from sdft_cli.report.live import live_training
    from sdft_cli.report.progress import progress_reporter
    from sdft_cli.stages.model_card import write_adapter_cards

    def watching() -> AbstractContextManager[Observer]:
        began()
        return live_training(job.config.optim.max_steps)

    job = replace(job, processes=processes)
    if processes is not None and not processes.first:
        from sdft_cli.engine.train.loop import Silent

        return start_training(job, say, lambda: nullcontext(Silent()))
    result = start_training(job, say, watching, progress_reporter)
    write_adapter_cards(job.folder)
    return result
