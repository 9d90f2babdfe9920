"""One model minus another on the same items: every metric's difference, paired by item, with its interval. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isclose
from typing import Any

from sdft_cli.intervals import FEW, Interval, Ratio, paired_interval
from sdft_cli.metrics import About, Item, Metric, Part, metrics_of, part_of

CLUSTER: dict[About, str] = {
    "records": "group",
    "drift": "prompt_id",
    "questions": "question_id",
    "harness": "document",
}
"""The key of an item that says what it is not independent of."""
_NAME = {**CLUSTER, "records": "record_id"}


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


def _ratio(parts: Sequence[Part]) -> Ratio:
    return Ratio([top for top, _ in parts], [bottom for _, bottom in parts])


def difference(
    metric: Metric, a: Sequence[Item], b: Sequence[Item], confidence: float, resamples: int, seed: int
) -> Difference | None:
    """Return a - b on a metric, paired by item and resampled by group of sessions; None if no item counts.

    Raises:
        ValueError: the items are not the same ones.
    """
    if [i[_NAME[metric.about]] for i in a] != [i[_NAME[metric.about]] for i in b]:
        raise ValueError("two models can only be compared on the same items")
    pairs = [(metric.count(x), metric.count(y), x[CLUSTER[metric.about]]) for x, y in zip(a, b, strict=True)]
    used = [(x, y, session) for x, y, session in pairs if x is not None and y is not None and x[1] and y[1]]
    if not used:
        return None
    one, other = _ratio([x for x, _, _ in used]), _ratio([y for _, y, _ in used])
    groups = [group for _, _, group in used]
    interval = paired_interval(one, other, groups, confidence, resamples, seed, metric.yes_or_no)
    differ = sum(not isclose(x[0] / x[1], y[0] / y[1], rel_tol=1e-6, abs_tol=1e-9) for x, y, _ in used)
    return Difference(interval, len(used), differ)


def differences(
    a: Mapping[str, Any], b: Mapping[str, Any], confidence: float, resamples: int, seed: int
) -> dict[str, dict[str, Any] | None]:
    """Return a - b on every metric that both models' results have: the value with its interval, how many items differ.

    None: no item counts for both.
    """
    found: dict[str, dict[str, Any] | None] = {}
    for metric in metrics_of(a):
        rows, others = (part_of(results, metric.about).get("items") for results in (a, b))
        if rows is not None and others is not None and not metric.whole:
            gap = difference(metric, rows, others, confidence, resamples, seed)
            found[metric.key] = gap.to_json() if gap else None
    return found
