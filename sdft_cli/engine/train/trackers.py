"""Metrics for tensorboard, trackio and wandb, through accelerate. `metrics.jsonl` is written with or without them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from sdft_cli.config import TrainConfig, leaves
from sdft_cli.errors import MachineError

ROLLOUTS = "rollouts"
"""What trackers call the table of rollouts."""
MOST_TEXT = 20_000
"""Characters of a text in it; `samples.jsonl` has all of them."""
PROJECT = "sdft"
"""What trackers call the project; the run has the name of its folder."""


def check_trackers(names: Iterable[str]) -> None:
    """Refuse trackers whose package is not installed; call it before anything is loaded.

    accelerate would leave them out without saying so.

    Raises:
        MachineError: names the package to install.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise MachineError(f"Tracker {name} needs the package {name}: pip install {name}")


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the numeric leaves of metrics, truth values as 0 and 1; text, lists and None are left out."""
    return {key: float(value) for key, value in leaves(metrics, "/").items() if isinstance(value, int | float)}


def settings(config: TrainConfig) -> dict[str, Any]:
    """Return a configuration as trackers take it: one level, and text for what is no number or truth value."""
    values = leaves(config.model_dump(mode="json"), "/")
    return {key: value if isinstance(value, bool | int | float) else str(value) for key, value in values.items()}


def tracker_arguments(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what each tracker is started with, so that its files go into `folder`.

    Folders that the user's environment names, and offline modes, are left as they are.
    """
    return {"wandb": {"dir": os.environ.get("WANDB_DIR", str(folder)), "name": folder.parent.name}}


def _name_folders(folder: Path) -> None:
    for variable, name in (
        ("TRACKIO_DIR", "trackio"),
        ("WANDB_CACHE_DIR", "wandb-cache"),
        ("WANDB_DATA_DIR", "wandb-data"),
    ):
        os.environ.setdefault(variable, str(folder / name))


def rollout_row(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a table of rollouts says of one line of `samples.jsonl`; its texts are cut at `MOST_TEXT`."""
    row = {name: sample[name] for name in ("step", "record_id", "on_policy", "finished", "rollout", "reference")}
    cut = {name: _shortened(row[name]) for name in ("rollout", "reference")}
    return {**row, **cut, "tokens": len(sample["per_token"]), "divergence": sum(sample["per_token"])}


def _shortened(text: str) -> str:
    left_out = len(text) - MOST_TEXT
    return text if left_out <= 0 else f"{text[:MOST_TEXT]} ... ({left_out:,} more characters)"


def as_markdown(row: Mapping[str, Any]) -> str:
    """Return a row as a table of Markdown, a line for each column: texts as escaped HTML that keeps their lines."""
    cells = ((name, escape(str(value)).replace("|", "&#124;").replace("\n", "<br>")) for name, value in row.items())
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {text} |" for name, text in cells)])


class Trackers:
    """The open trackers of a run; `log` goes to each of them."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Log the numeric metrics of a step."""
        if self._accelerator.trackers:
            self._accelerator.log(numbers(metrics), step=step)

    def log_rollout(self, sample: Mapping[str, Any], step: int) -> None:
        """Log a rollout and the expert's turn as a table of one row: wandb's, trackio's, or text in tensorboard."""
        row = rollout_row(sample)
        for tracker in self._accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.writer.add_text(ROLLOUTS, as_markdown(row), global_step=step)
                tracker.writer.flush()
            elif tracker.name == "wandb":
                import wandb

                table = wandb.Table(columns=list(row), data=[list(row.values())])
                tracker.run.log({ROLLOUTS: table}, step=step)
            elif tracker.name == "trackio":
                import pandas
                import trackio

                tracker.run.log({ROLLOUTS: trackio.Table(dataframe=pandas.DataFrame([row]))}, step=step)

    def close(self) -> None:
        """Write what is pending and finish; a second call does nothing."""
        while self._accelerator.trackers:
            self._accelerator.trackers.pop().finish()


def open_trackers(accelerator: Any, config: TrainConfig, folder: Path) -> Trackers:
    """Open the trackers of `config.trackers`, with their files in `folder/trackers`.

    Args:
        accelerator: the run's `Accelerator`; it may have been made without trackers.
        folder: the run folder.

    Raises:
        MachineError: as `check_trackers`, or a tracker does not start, e.g. wandb without a login.
    """
    if not config.trackers:
        return Trackers(accelerator)
    from accelerate.tracking import filter_trackers

    check_trackers(config.trackers)
    files = folder / "trackers"
    files.mkdir(parents=True, exist_ok=True)
    _name_folders(files)
    accelerator.project_configuration.set_directories(str(files))
    accelerator.log_with = filter_trackers(list(config.trackers), accelerator.logging_dir)
    missing = set(config.trackers) - {str(name) for name in accelerator.log_with}
    if missing:
        raise MachineError(f"accelerate cannot start the tracker {min(missing)} here: leave it out.")
    try:
        accelerator.init_trackers(PROJECT, settings(config), tracker_arguments(files))
    except Exception as error:  # each tracker fails in its own way: no login, no network, an old version
        text = str(error).splitlines() or [""]
        raise MachineError(
            f"A tracker ({', '.join(config.trackers)}) does not start ({type(error).__name__}: {text[0]}): "
            "set it up, or leave it out."
        ) from error
    return Trackers(accelerator)
