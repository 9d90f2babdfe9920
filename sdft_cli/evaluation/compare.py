"""Evaluations of several runs against each other: `sdft compare`. No torch.

Nothing is run; what `sdft eval` wrote is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isclose
from typing import Any

from sdft_cli.errors import DataError, UsageError, did_you_mean
from sdft_cli.evaluation.differences import differences
from sdft_cli.evaluation.document import Document
from sdft_cli.metrics import metrics_of


def _base(document: Document) -> str | None:
    return next((name for name, found in document["contenders"].items() if found["kind"] == "base"), None)


def evaluated_alike(name: str, first: Document, other: Document) -> None:
    """Refuse documents whose numbers do not belong side by side.

    Raises:
        DataError: other records, settings or another base.
    """
    for key, what in (("dataset", "on another dataset"), ("config", "with other settings")):
        if first[key] != other[key]:
            raise DataError(f"{name} was evaluated {what} than the first one: run `sdft eval` on both alike.")
    one, two = ((d["contenders"].get(_base(d)), d.get("model")) for d in (first, other))
    if None in (one[0], two[0]) or one[1] != two[1] or not _same_base(one[0], two[0]):
        raise DataError(f"{name} was evaluated against another base than the first one: compare runs from one base.")


def _same_base(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Say whether two results can be of one base: alike on every record, but for what another machine rounds."""
    pairs = list(zip(one["items"], other["items"], strict=True))
    return all(a["record_id"] == b["record_id"] and isclose(a["nll"], b["nll"], rel_tol=0.01) for a, b in pairs)


def compare(documents: Sequence[tuple[str, Document]]) -> Document:
    """Put the models of several evaluations side by side: each against the base, and against the first of them.

    Args:
        documents: as `document.read_evaluation` returns them.

    Returns `{"config", "records", "facts", "contenders", "differences"}`, as an evaluation of all of them in one run
    would have; models are named by their document where that is needed to tell them apart.

    Raises:
        DataError: they were not evaluated alike.
        UsageError: fewer than two models.
    """
    _, first = documents[0]
    base = _base(first)
    found: dict[str, Any] = {base: first["contenders"][base]} if base else {}
    for name, document in documents:
        evaluated_alike(name, first, document)
        models = {k: v for k, v in document["contenders"].items() if v["kind"] != "base"}
        for model, results in models.items():
            label = name if len(models) == 1 else f"{name}: {model}"
            if label in found:
                raise UsageError(f"Two models would be called {label}: rename a folder or a file.")
            found[label] = results
    if len(found) < 3:
        raise UsageError("A comparison needs at least two tuned models: name more runs.")
    names, config = list(found), first["config"]
    settings = config["confidence"], config["resamples"], config["seed"]
    pairs = [(name, names[0]) for name in names[1:]] + [(name, names[1]) for name in names[2:]]
    return {
        "config": config,
        "records": first["records"],
        "facts": first["facts"],
        "contenders": found,
        "differences": {f"{a} - {b}": differences(found[a], found[b], *settings) for a, b in pairs},
    }


def trade_off(comparison: Mapping[str, Any], skill: str, forgetting: str) -> list[dict[str, Any]]:
    """Return each tuned model's gain in skill and loss in forgetting over the base, with intervals; higher is better,
    and more forgotten, whatever way the metrics run.

    Raises:
        UsageError: a metric is unknown, has no better side, or was not evaluated.
    """
    names = list(comparison["contenders"])
    points = []
    for name in names[1:]:
        gaps = comparison["differences"][f"{name} - {names[0]}"]
        metrics = metrics_of(comparison["contenders"][name])
        better = {m.key: m.better for m in metrics if m.better != "neither" and not m.whole}
        skilled, forgot = _gain(gaps, better, skill, 1), _gain(gaps, better, forgetting, -1)
        points.append({"name": name, "skill": skilled, "forgetting": forgot})
    return points


def _gain(gaps: Mapping[str, Any], better: Mapping[str, str], key: str, sign: int) -> dict[str, Any]:
    if key not in better:
        raise UsageError(f"{key} cannot be plotted: {did_you_mean(key, better)}")
    gap = gaps.get(key)
    if gap is None:
        raise UsageError(f"{key} was not evaluated: run `sdft eval` without leaving that part out.")
    if better[key] == "lower":
        sign = -sign
    ends = sorted((sign * gap[k] for k in ("low", "high")) if gap["low"] is not None else [])
    low, high = ends or (None, None)
    return {"value": sign * gap["value"], "low": low, "high": high}
