"""A path -> what `sdft report` shows: a dataset, a run with all that belongs to it, or an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sdft_cli.errors import DataError, UsageError
from sdft_cli.notices import say
from sdft_cli.places import DATA_ROOT, DATASET, RUN, RUNS_ROOT, WHOLE_RUN, meant_folder
from sdft_cli.stages.folders import all_of

if TYPE_CHECKING:
    from sdft_cli.records import Dataset
    from sdft_cli.report.run.parts import Evaluation, RunParts

DEMO = Path("demo")
"""The folder of `sdft demo`."""
PAGE = "report.html"
MOST_EVALUATIONS = 3


def write_report(folder: Path) -> Path:
    """Write the page of a whole run's folder, and return its path: of its training run, or of the dataset alone.

    Raises:
        DataError: what is to be shown is missing or damaged.
        MachineError: the page cannot be written.
    """
    from sdft_cli.records import read_dataset
    from sdft_cli.records.folders import write_text
    from sdft_cli.report.page import render_page
    from sdft_cli.report.run.page import render_run

    trained = (folder / "run" / RUN).is_file()
    page = render_run(run_parts(folder / "run")) if trained else render_page(read_dataset(folder / "data"))
    write_text(folder / PAGE, page, overwrite=True)
    return folder / PAGE


@dataclass(frozen=True)
class Subject:
    """What a path names: `path` is the folder of a dataset or a run, or the file of an evaluation."""

    kind: Literal["dataset", "run", "evaluation"]
    path: Path


def subject_of(path: Path) -> Subject:
    """Find out what a path is; the folder of a whole run stands for its training run.

    Raises:
        UsageError: it does not exist, or is none of them.
    """
    if path.is_file() and path.suffix == ".json" and path.name not in (DATASET, RUN, WHOLE_RUN):
        return Subject("evaluation", path)
    folder = path.parent if path.is_file() and path.name in (DATASET, RUN, WHOLE_RUN) else path
    for found in (folder, folder / "run", folder / "data"):
        if found == folder or (folder / WHOLE_RUN).is_file():
            for kind, marker in (("run", RUN), ("dataset", DATASET)):
                if (found / marker).is_file():
                    return Subject(kind, found)  # type: ignore[arg-type]
    if not path.exists():
        where = "There is no dataset, run or evaluation" if path.suffix != ".json" else "There is no file"
        otherwise = "name the folder of a dataset or a run, or what `sdft eval` wrote."
        raise UsageError(f"{where} {path}: {meant_folder(path, RUN, RUNS_ROOT, otherwise, (DATASET, DATA_ROOT))}")
    raise UsageError(
        f"{path} is no dataset ({DATASET}), no run ({RUN}) and no evaluation (a .json file): name one of these."
    )


def newest_subject() -> Subject:
    """Return the newest run or dataset under `runs/` and `data/`, or in the folder `demo`, and say which it is.

    Raises:
        UsageError: there is none.
    """
    runs = [*all_of(RUNS_ROOT, RUN, "run"), DEMO / "run"]
    datasets = [*all_of(DATA_ROOT, DATASET, "data"), DEMO / "data"]
    subjects = [*(Subject("run", folder) for folder in runs), *(Subject("dataset", folder) for folder in datasets)]
    found = [(changed, one) for one in subjects if (changed := _changed(one)) is not None]
    if not found:
        raise UsageError(
            f"There is no run under {RUNS_ROOT}/ and no dataset under {DATA_ROOT}/: run `sdft prepare SOURCE` first, "
            "or name what to show."
        )
    _, newest = max(found, key=lambda pair: (pair[0], pair[1].path))
    say(f"Using the newest {newest.kind}: {newest.path}")
    return newest


def _changed(subject: Subject) -> int | None:
    """Return when a run made its last step or a dataset was written, nanoseconds; None if it is not there."""
    marker, news = (RUN, "metrics.jsonl") if subject.kind == "run" else (DATASET, DATASET)
    if not (subject.path / marker).is_file():
        return None
    files = (subject.path / name for name in (marker, news))
    return max(file.stat().st_mtime_ns for file in files if file.is_file())


def run_parts(folder: Path) -> RunParts:
    """Read a run with its dataset and its evaluations, wherever they are found.

    Raises:
        DataError: `run.json` is damaged, or was not written by `sdft train`.
    """
    from sdft_cli.records.json_files import read_json
    from sdft_cli.report.run.parts import mapping, read_parts
    from sdft_cli.run_folder import is_current

    notes: list[str] = []
    info = read_json(folder / RUN, "the run is not whole, run `sdft train` again")
    dataset = _dataset_of(folder, mapping(info.get("dataset")), notes)
    evaluations = _evaluations_of(folder, dataset, notes)
    found = read_parts(folder, dataset, evaluations, notes)
    if found.certificate and not is_current(folder, found.certificate.get("adapter")):
        stale = "merged/ is of an earlier adapter of this run: merge again with --overwrite."
        return replace(found, certificate=None, notes=[*found.notes, stale])
    return found


def _dataset_of(folder: Path, told: Mapping[str, Any], notes: list[str]) -> Dataset | None:
    """Return the dataset that a run was trained on: where it was, or beside the run; None if it is not there."""
    from sdft_cli.engine.train.opening import records_hash
    from sdft_cli.records import read_dataset

    path = Path(str(told.get("path", "")))
    places = [path, folder.parent / path.name] if path.name else []
    found = next((place for place in places if (place / DATASET).is_file()), None)
    if found is None:
        notes.append(f"The dataset {told.get('name', '?')} is not where it was.")
        return None
    try:
        data = read_dataset(found)
    except DataError as error:
        notes.append(str(error))
        return None
    if records_hash(data.train) != told.get("records_hash"):
        notes.append(f"{found} is not the dataset that this run was trained on: its records are others.")
        return None
    return data


def _evaluations_of(folder: Path, dataset: Dataset | None, notes: list[str]) -> list[Evaluation]:
    """Return the evaluations of a run, the newest first, and that of `sdft demo` beside it."""
    files = sorted(folder.glob("eval*.json"), key=lambda file: -file.stat().st_mtime_ns)
    if (folder.parent / WHOLE_RUN).is_file() and folder.name == "run":
        files += [file for file in [folder.parent / "eval.json"] if file.is_file()]
    found = []
    for file in files:
        try:
            found.append(read_evaluation_of(file, dataset))
        except DataError as error:
            notes.append(str(error))
    if not files:
        notes.append("There is no evaluation (eval.json).")
    if len(found) > MOST_EVALUATIONS:
        notes.append(f"{len(found) - MOST_EVALUATIONS} older evaluation(s) are left out.")
    return found[:MOST_EVALUATIONS]


def read_evaluation_of(file: Path, dataset: Dataset | None = None) -> Evaluation:
    """Read an evaluation, with the expert's turns where the dataset is at hand.

    Raises:
        DataError: it is damaged, or of another version.
    """
    from sdft_cli.evaluation.document import read_evaluation
    from sdft_cli.report.run.page import unreadable
    from sdft_cli.report.run.parts import Evaluation

    _, document = read_evaluation(file)
    if lacking := unreadable(document):
        raise DataError(f"{file} lacks {', '.join(lacking)}: run `sdft eval` again.")
    references = _references(dataset) if dataset else {}
    return Evaluation(file.name, document, _points(document), references)


def _points(document: dict[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return what each tuned model learned and forgot; nothing where that was not measured."""
    from sdft_cli.evaluation.compare import trade_off
    from sdft_cli.report.run.page import FORGETTING, SKILL

    try:
        return trade_off(document, SKILL, FORGETTING) if len(document["contenders"]) > 1 else []
    except (UsageError, KeyError):
        return []


def _references(dataset: Dataset) -> dict[str, str]:
    from sdft_cli.report.run.answers import plain_turn

    return {
        record.record_id: plain_turn(
            record.reference.content,
            [{"name": call.name, "arguments": call.arguments} for call in record.reference.tool_calls],
        )
        for record in dataset.validation
    }
