"""What is kept of earlier datasets when runs go on from each other: `sdft compare --matrix`. No torch.

    R[i][j]             a measure on the held-out records of dataset j, after training on datasets 1 to i
    backward transfer   1 / (T - 1) sum_{i < T} (R[T][i] - R[i][i]), with the sign that makes better positive

GEM, arXiv 1706.08840, eq. 3; negative is forgetting. Nothing is run; what `sdft eval` wrote is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

from sdft_cli.errors import DataError, UsageError
from sdft_cli.evaluation.compare import evaluated_alike
from sdft_cli.evaluation.differences import difference
from sdft_cli.evaluation.document import Document, read_evaluation
from sdft_cli.metrics import METRICS, Metric, part_of
from sdft_cli.run_folder import is_run, read_run_json


@dataclass(frozen=True)
class Stage:
    """A run of a sequence: what it was trained on, and its evaluations, dataset -> document."""

    path: Path
    info: Mapping[str, Any]
    evaluations: Mapping[str, Document]

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def dataset(self) -> str:
        """The name of the dataset that it was trained on."""
        return str(self.info["dataset"]["name"])

    @property
    def adapter(self) -> str:
        """The hash of its adapter."""
        return str(next(iter(self.evaluations.values()))["adapter"]["sha256"])


def read_stage(path: Path) -> Stage:
    """Read a run's evaluations of its last adapter: every `eval*.json` in its folder.

    Raises:
        UsageError: it is no run, or was not evaluated.
        DataError: two are of one dataset, or of two adapters.
    """
    if not is_run(path):
        raise UsageError(f"{path} is no run: --matrix takes the folders of runs, in the order of their training.")
    found: dict[str, Document] = {}
    for file in sorted(path.glob("eval*.json")):
        document = read_evaluation(file)[1]
        if document["adapter"]["name"] != "adapter":
            continue
        if (name := document["dataset"]["name"]) in found:
            raise DataError(f"{path} has two evaluations on {name}: delete one of its eval*.json.")
        found[name] = document
    if not found:
        raise UsageError(f"{path} was not evaluated: run `sdft eval {path} DATASET --out {path}/eval-NAME.json`.")
    if len({document["adapter"]["sha256"] for document in found.values()}) > 1:
        raise DataError(f"{path} was trained again between its evaluations: run `sdft eval` again.")
    return Stage(path, read_run_json(path), found)


def forgetting_matrix(stages: Sequence[Stage], skill: str) -> dict[str, Any]:
    """Return the matrix of a sequence of runs.

    Args:
        stages: in the order of their training; each names a column, the dataset that it was trained on.
        skill: a measure of eval.json, one with a better side.

    Returns `{"skill", "confidence", "datasets", "base", "runs": [{"name", "values"}], "changes": {dataset: difference},
    "backward_transfer", "notes"}`: `values` has a cell per dataset, None where it was not evaluated; `base` is the
    model before training; a change is the last run's value minus that right after the dataset, paired, with interval.

    Raises:
        UsageError: fewer than two runs, two of one dataset, a cell that is needed is missing, or the measure is none.
        DataError: a column's evaluations were not alike.
    """
    metric = _metric(skill)
    names = [stage.dataset for stage in stages]
    if len(set(names)) < max(2, len(names)):
        raise UsageError(f"A matrix needs runs on two datasets or more, one each; these were trained on {names}.")
    last, columns = stages[-1], [_column(stages, name) for name in names]
    for name, own in zip(names, stages, strict=True):
        for stage in (own, last):
            if name not in stage.evaluations:
                out = f"{stage.path}/eval-{name}.json"
                raise UsageError(f"{stage.path} lacks {name}: run `sdft eval {stage.path} DATASET --out {out}`.")
    config = columns[0][0]["config"]
    changes = {}
    for stage in stages[:-1]:
        after, before = (_items(s.evaluations[stage.dataset], "tuned", metric) for s in (last, stage))
        gap = difference(metric, after, before, config["confidence"], config["resamples"], config["seed"])
        if gap is None:
            raise UsageError(f"{skill} was not evaluated on {stage.dataset}: run `sdft eval` without leaving it out.")
        changes[stage.dataset] = gap.to_json()
    sign = 1 if metric.better == "higher" else -1
    return {
        "skill": skill,
        "confidence": config["confidence"],
        "datasets": names,
        "base": [metric.of(_items(column[0], "base", metric)) for column in columns],
        "runs": [{"name": s.name, "values": [_value(s, name, metric) for name in names]} for s in stages],
        "changes": changes,
        "backward_transfer": sign * mean(change["value"] for change in changes.values()),
        "notes": _notes(stages),
    }


def _metric(key: str) -> Metric:
    usable = {m.key: m for m in METRICS.values() if m.better != "neither" and not m.whole}
    if key not in usable:
        raise UsageError(f"{key} has no better side here: use one of {', '.join(usable)}.")
    return usable[key]


def _column(stages: Sequence[Stage], dataset: str) -> list[Document]:
    """Return the evaluations on a dataset, all made alike."""
    found = [(f"{s.name} on {dataset}", s.evaluations[dataset]) for s in stages if dataset in s.evaluations]
    for name, document in found:
        evaluated_alike(name, found[0][1], document)
    return [document for _, document in found]


def _items(document: Document, kind: str, metric: Metric) -> Sequence[Mapping[str, Any]]:
    results = next(found for found in document["contenders"].values() if found["kind"] == kind)
    items: Sequence[Mapping[str, Any]] = part_of(results, metric.about).get("items", [])
    return items


def _value(stage: Stage, dataset: str, metric: Metric) -> float | None:
    document = stage.evaluations.get(dataset)
    return metric.of(_items(document, "tuned", metric)) if document else None


def _notes(stages: Sequence[Stage]) -> list[str]:
    """Say where a run did not go on from the one before it."""
    return [
        f"{after.name} did not begin with the adapter of {before.name} (--init-adapter)"
        for before, after in pairwise(stages)
        if (after.info.get("init_adapter") or {}).get("sha256") != before.adapter
    ]
