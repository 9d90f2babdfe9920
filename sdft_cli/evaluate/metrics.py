"""The numbers of an evaluation: each is a ratio of two sums over items, so that models can be compared item by item."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isclose
from typing import Any, Literal

import numpy as np

from sdft_cli.evaluate.answers import TOOL_FLAGS
from sdft_cli.intervals import FEW, Interval, Ratio, paired_interval

Item = Mapping[str, Any]
Part = tuple[float, float]
"""(top, bottom) of one item: nats and tokens, or a flag and 1."""


@dataclass(frozen=True)
class Measure:
    """One number: what it is of, and how an item counts; None: it does not count for this item.

    `about`: the part of the evaluation that it belongs to. `better`: which way is better, if one is. `yes_or_no`: an
    item is 0 or 1.
    """

    key: str
    about: Literal["records", "drift", "questions", "harness"]
    better: Literal["higher", "lower", "neither"]
    part: Callable[[Item], Part | None]
    yes_or_no: bool = False


def _flag(key: str) -> Callable[[Item], Part | None]:
    return lambda item: (float(item["flags"][key]), 1.0) if item["flags"] else None


def _prose(key: str) -> Callable[[Item], Part | None]:
    return lambda item: None if item["flags"] or item[key] is None else (float(item[key]), 1.0)


MEASURES = (
    Measure("expert_nll_per_token", "records", "lower", lambda i: (i["nll"], i["reference_tokens"])),
    Measure("kl_per_token", "records", "lower", lambda i: (i["kl"], i["rollout_tokens"])),
    Measure("rollout_length", "records", "neither", lambda i: (i["rollout_tokens"], 1.0)),
    Measure("finished_share", "records", "higher", lambda i: (float(i["finished"]), 1.0), True),
    *(Measure(f"tool_{flag}_share", "records", "higher", _flag(flag), True) for flag in TOOL_FLAGS),
    Measure("prose_chrf", "records", "higher", _prose("chrf")),
    Measure("unasked_call_share", "records", "lower", _prose("calls_unasked"), True),
    Measure("mentions_reference_share", "records", "lower", lambda i: (float(i["mentions_reference"]), 1.0), True),
    Measure("copied_share", "records", "neither", lambda i: (i["copied_share"], 1.0)),
    Measure("unknown_path_share", "records", "lower", lambda i: (float(bool(i["unknown_paths"])), 1.0), True),
    Measure("drift_kl", "drift", "lower", lambda i: (i["kl"], i["tokens"])),
    Measure("drift_same_top", "drift", "higher", lambda i: (i["same_top"], i["tokens"])),
    Measure("entropy", "drift", "neither", lambda i: (i["entropy"], i["tokens"])),
    Measure("questions_right", "questions", "higher", lambda i: (float(i["correct"]), 1.0), True),
)
BY_KEY = {measure.key: measure for measure in MEASURES}
CLUSTER = {"records": "group", "drift": "prompt_id", "questions": "question_id", "harness": "document"}
"""The key of an item that says what it is not independent of."""
_NAME = {**CLUSTER, "records": "record_id"}


def harness_measures(found: Mapping[str, Any]) -> list[Measure]:
    """Return the measures of what the harness found on a model (`harness.open_harness`)."""

    def part(key: str) -> Callable[[Item], Part | None]:
        return lambda item: (item["values"][key], 1.0) if key in item["values"] else None

    better: dict[bool | None, Literal["higher", "lower", "neither"]] = {True: "higher", False: "lower", None: "neither"}
    return [Measure(key, "harness", better[up], part(key)) for key, up in found["higher_is_better"].items()]


@dataclass(frozen=True)
class Difference:
    """One model minus another on the same items.

    `items`: that count; `discordant`: those on which the two differ by more than rounding.
    """

    interval: Interval
    items: int
    discordant: int

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        few = self.interval.sessions < FEW
        return {**self.interval.to_json(), "few_sessions": few, "items": self.items, "discordant": self.discordant}


def mean(measure: Measure, items: Sequence[Item]) -> float | None:
    """Return sum(top) / sum(bottom) over the items that count; None if none does."""
    parts = [part for item in items if (part := measure.part(item)) is not None]
    bottom = sum(b for _, b in parts)
    return sum(t for t, _ in parts) / bottom if bottom else None


def summary(items: Sequence[Item], about: str) -> dict[str, float | None]:
    """Return every measure of a part of the evaluation."""
    return {m.key: mean(m, items) for m in MEASURES if m.about == about}


def by_group(items: Sequence[Item], key: str) -> dict[str, dict[str, float | None]]:
    """Return the measures of records by a property of them, e.g. `tools` or `position`, with the number of records."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item[key], []).append(item)
    return {name: {"records": len(some), **summary(some, "records")} for name, some in sorted(groups.items())}


def p95(values: Sequence[float]) -> float | None:
    """Return the 95th percentile; None of nothing."""
    return float(np.quantile(values, 0.95)) if len(values) else None


def _ratio(parts: Sequence[Part]) -> Ratio:
    return Ratio([top for top, _ in parts], [bottom for _, bottom in parts])


def difference(
    measure: Measure, a: Sequence[Item], b: Sequence[Item], confidence: float, resamples: int, seed: int
) -> Difference | None:
    """Return a - b on a measure, paired by item and resampled by group of sessions; None if no item counts.

    Raises:
        ValueError: the items are not the same ones.
    """
    if [i[_NAME[measure.about]] for i in a] != [i[_NAME[measure.about]] for i in b]:
        raise ValueError("two models can only be compared on the same items")
    pairs = [(measure.part(x), measure.part(y), x[CLUSTER[measure.about]]) for x, y in zip(a, b, strict=True)]
    used = [(x, y, session) for x, y, session in pairs if x is not None and y is not None and x[1] and y[1]]
    if not used:
        return None
    one, other = _ratio([x for x, _, _ in used]), _ratio([y for _, y, _ in used])
    groups = [group for _, _, group in used]
    interval = paired_interval(one, other, groups, confidence, resamples, seed, measure.yes_or_no)
    differ = sum(not isclose(x[0] / x[1], y[0] / y[1], rel_tol=1e-6, abs_tol=1e-9) for x, y, _ in used)
    return Difference(interval, len(used), differ)
