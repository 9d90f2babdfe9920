"""What a run left behind, read for a reader: whatever is missing or damaged is said, and the rest is shown."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdft_cli.errors import DataError
from sdft_cli.places import WHOLE_RUN
from sdft_cli.records import Dataset
from sdft_cli.records.json_files import read_json

Line = Mapping[str, Any]
CERTIFICATE = "merge-certificate.json"


@dataclass(frozen=True)
class Evaluation:
    """An evaluation, and what its file does not hold.

    `name`: of its file. `points`: what was learned and forgotten, for the plot, or none. `references`: the expert's
    turns by record, where the dataset is at hand.
    """

    name: str
    document: Mapping[str, Any]
    points: Sequence[Mapping[str, Any]] = ()
    references: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RunParts:
    """A run folder in memory. `notes`: what is missing or damaged, a sentence each."""

    name: str
    info: Mapping[str, Any]
    config: Mapping[str, Any]
    gate: Mapping[str, Any] | None
    metrics: Sequence[Line]
    heldout: Sequence[Line]
    answers: Sequence[Line]
    samples: Sequence[Line]
    certificate: Mapping[str, Any] | None
    dataset: Dataset | None
    evaluations: Sequence[Evaluation]
    notes: Sequence[str]

    @property
    def steps(self) -> int:
        """Optimiser steps that are done."""
        return int(number(self.metrics[-1], "step") or 0) if self.metrics else 0


def number(line: Mapping[str, Any], key: str) -> float | None:
    """Return a finite number of a line; None if it is none."""
    value = line.get(key)
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None  # type: ignore[arg-type]


def read_lines(path: Path, notes: list[str]) -> list[Line]:
    """Read JSON objects, a line each; a file that is missing and lines that are none are added to `notes`."""
    if not path.is_file():
        notes.append(f"{path.name} is not there.")
        return []
    found, damaged = list[Line](), 0
    with path.open("rb") as file:
        for line in file:
            try:
                document = json.loads(line)
            except (ValueError, RecursionError):
                document = None
            if isinstance(document, dict):
                found.append(document)
            else:
                damaged += 1
    if damaged:
        notes.append(f"{damaged} line(s) of {path.name} are damaged, or were being written, and are left out.")
    return found


def read_part(path: Path, notes: list[str], what: str = "") -> dict[str, Any] | None:
    """Read a JSON object that need not be there; what is damaged, or missing and called `what`, is added to `notes`."""
    if not path.is_file():
        if what:
            notes.append(f"There is no {what} ({path.name}).")
        return None
    try:
        return read_json(path, "it is left out")
    except DataError as error:
        notes.append(str(error))
        return None


def _name(folder: Path) -> str:
    """Return the name of a run: of its folder, or of the whole run that it is `run/` of."""
    return folder.parent.name if folder.name == "run" and (folder.parent / WHOLE_RUN).is_file() else folder.name


def read_parts(
    folder: Path, dataset: Dataset | None, evaluations: Sequence[Evaluation], notes: Sequence[str]
) -> RunParts:
    """Read a run folder, finished or not.

    Args:
        folder: the run.
        dataset: the one it was trained on, if it is there.
        evaluations: of the run.
        notes: what was found missing before.

    Raises:
        DataError: `run.json` is missing or damaged, or was not written by `sdft train`.
    """
    info = read_json(folder / "run.json", "the run is not whole, run `sdft train` again")
    if info.get("format") != "sdft-run":
        raise DataError(f"{folder / 'run.json'} was not written by `sdft train`: give a run folder.")
    found = list(notes)
    config = read_part(folder / "config.json", found, "configuration") or {}
    gate = read_part(folder / "gate.json", found, "measurement of the gate")
    lines = {name: read_lines(folder / f"{name}.jsonl", found) for name in ("metrics", "heldout", "samples")}
    answers = read_lines(folder / "heldout_answers.jsonl", found if lines["heldout"] else [])
    certificate = read_part(folder / "merged" / CERTIFICATE, found, "merged checkpoint in merged/")
    return RunParts(
        name=_name(folder.resolve()),
        info=info,
        config=config,
        gate=gate,
        metrics=lines["metrics"],
        heldout=lines["heldout"],
        answers=answers,
        samples=lines["samples"],
        certificate=certificate,
        dataset=dataset,
        evaluations=evaluations,
        notes=found,
    )


def texts(value: Any) -> list[str]:
    """Return a list's texts; anything else in it is written as Python would."""
    return [x if isinstance(x, str) else repr(x) for x in value] if isinstance(value, list) else []


def numbers(value: Any) -> list[float]:
    """Return a list's numbers; what is none counts as 0."""
    return [number({"x": x}, "x") or 0.0 for x in value] if isinstance(value, list) else []


def mapping(value: Any) -> Mapping[str, Any]:
    """Return a mapping, or an empty one in the place of anything else."""
    return value if isinstance(value, dict) else {}


def mappings(value: Any) -> list[Mapping[str, Any]]:
    """Return the mappings of a list."""
    return [x for x in value if isinstance(x, dict)] if isinstance(value, list) else []
