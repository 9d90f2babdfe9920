"""Means over seeds, intervals over sessions, tables and the plot.

A recipe is the mean of its seeds, item by item; intervals resample sessions (held-out records) or prompts. They say how
sure the mean over these seeds is for other sessions; the seeds themselves are shown as a range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from sdft_cli.config import EvalConfig
from sdft_cli.evaluation.differences import CLUSTER
from sdft_cli.intervals import Ratio, paired_interval
from sdft_cli.metrics import METRICS, Metric, part_of
from sdft_cli.report.comparison import trade_off_svg

LEARNED = {
    "expert_nll_per_token": "expert NLL, nats per token",
    "tool_named_share": "right tool",
    "tool_valid_share": "and arguments valid",
    "tool_exact_share": "and the expert's arguments",
    "unasked_call_share": "call not asked for",
    "finished_share": "turn finished",
}
FORGOTTEN = {
    "drift_kl": "KL(base to model), nats per token",
    "drift_same_top": "same top-1 token as the base",
    "questions_right": "questions right",
}
SHOWN = (*LEARNED, *FORGOTTEN)
SKILL, DRIFT = "tool_named_share", "drift_kl"
"""What is set against what, in the plot and at equal drift."""

Contender = dict[str, Any]
Parts = Sequence[tuple[float, float] | None]
"""Each item's part of a metric, numerator and denominator; None where it has none."""


def _items(contender: Contender, metric: Metric) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = part_of(contender, metric.about)["items"]
    return found


def mean_of_seeds(contenders: Sequence[Contender], metric: Metric) -> Parts:
    """Return each item's part of a metric, averaged over seeds."""
    columns = zip(*[[metric.count(i) for i in _items(c, metric)] for c in contenders], strict=True)
    return [_mean(column, [1 / len(contenders)] * len(contenders)) for column in columns]


def _mean(parts: Sequence[tuple[float, float] | None], weights: Sequence[float]) -> tuple[float, float] | None:
    known = [p for p in parts if p is not None]
    if len(known) < len(parts):
        return None
    pairs = list(zip(known, weights, strict=True))
    return sum(p[0] * w for p, w in pairs), sum(p[1] * w for p, w in pairs)


def difference(one: Parts, other: Parts, names: Sequence[str], metric: Metric, config: EvalConfig) -> Any:
    """Return the paired difference of a metric with its interval over `names`, the session or prompt of each item."""
    used = [(a, b, n) for a, b, n in zip(one, other, names, strict=True) if a and b and a[1] and b[1]]
    a, b = (Ratio([u[i][0] for u in used], [u[i][1] for u in used]) for i in (0, 1))
    settings = config.confidence, config.resamples, config.seed
    return paired_interval(a, b, [name for _, _, name in used], *settings, metric.yes_or_no)


def _names(contender: Contender, metric: Metric) -> list[str]:
    return [item[CLUSTER[metric.about]] for item in _items(contender, metric)]


def gap(runs: Sequence[Contender], base: Contender, key: str, config: EvalConfig) -> dict[str, Any]:
    """Return the difference of a recipe's seeds from the base on a metric: of their mean, and of each."""
    metric = METRICS[key]
    names, other = _names(base, metric), mean_of_seeds([base], metric)
    mean = difference(mean_of_seeds(runs, metric), other, names, metric, config)
    seeds = [difference(mean_of_seeds([run], metric), other, names, metric, config).value for run in runs]
    return {**mean.to_json(), "seeds": seeds}


def value_of(runs: Sequence[Contender], key: str) -> float:
    """Return a metric's mean over seeds."""
    return sum(float(part_of(run, METRICS[key].about)["summary"][key]) for run in runs) / len(runs)


def at_equal_drift(
    runs: Sequence[Contender],
    base: Contender,
    opponents: Mapping[str, Sequence[Contender]],
    key: str,
    config: EvalConfig,
) -> dict[str, Any] | None:
    """Return a recipe minus SFT that has drifted as far, on a metric; None if no opponent has.

    SFT's curve goes from the base (no drift) through its learning rates in the order of their drift, straight between
    them; a point on it is the mean of two neighbours, weighted, item by item. Weights are taken as known. `seeds`: the
    same of each seed of the recipe alone, at its own drift.
    """
    metric, names = METRICS[key], _names(base, METRICS[key])
    curve = sorted(
        [(0.0, [base]), *((value_of(found, DRIFT), found) for found in opponents.values())], key=lambda p: p[0]
    )

    def minus_curve(some: Sequence[Contender]) -> dict[str, Any] | None:
        drift = value_of(some, DRIFT)
        for (low, left), (high, right) in pairwise(curve):
            if low <= drift <= high and high > low:
                share = (drift - low) / (high - low)
                columns = zip(mean_of_seeds(left, metric), mean_of_seeds(right, metric), strict=True)
                mixed = [_mean(pair, [1 - share, share]) for pair in columns]
                return dict(difference(mean_of_seeds(some, metric), mixed, names, metric, config).to_json())
        return None

    mean, seeds = minus_curve(runs), [minus_curve([run]) for run in runs]
    return mean and {**mean, "seeds": [seed["value"] for seed in seeds if seed]}


def study(
    found: Mapping[str, Sequence[Contender]], base: Contender, opponents: Sequence[str], config: EvalConfig
) -> dict[str, Any]:
    """Put a setting together: the base, each recipe against it, and each against SFT, if any, at equal drift."""
    against = {name: found[name] for name in opponents}
    return {
        "base": {key: value_of([base], key) for key in SHOWN},
        "recipes": {name: {key: gap(runs, base, key, config) for key in SHOWN} for name, runs in found.items()},
        "at equal drift": {
            name: {key: at_equal_drift(runs, base, against, key, config) for key in LEARNED}
            for name, runs in found.items()
            if against and name not in opponents
        },
    }


def table(result: Mapping[str, Any], shown: Mapping[str, str]) -> str:
    """Return metrics as Markdown: the base's value, and each recipe's difference from it."""
    lines = ["| | " + " | ".join(shown.values()) + " |", "| --- |" + " ---: |" * len(shown)]
    lines.append("| base | " + " | ".join(f"{result['base'][key]:.3f}" for key in shown) + " |")
    for name, gaps in result["recipes"].items():
        lines.append(f"| {name} | " + " | ".join(_cell(gaps[key]) for key in shown) + " |")
    return "\n".join(lines)


def drift_table(result: Mapping[str, Any]) -> str:
    """Return each recipe minus SFT at equal drift as Markdown."""
    lines = ["| | " + " | ".join(LEARNED.values()) + " |", "| --- |" + " ---: |" * len(LEARNED)]
    for name, gaps in result["at equal drift"].items():
        cells = ("SFT did not drift so far" if gaps[key] is None else _cell(gaps[key]) for key in LEARNED)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _interval(one: Mapping[str, Any]) -> str:
    interval = "" if one["low"] is None else f" [{one['low']:+.3f}, {one['high']:+.3f}]"
    return f"{one['value']:+.3f}{interval}"


def _cell(one: Mapping[str, Any]) -> str:
    seeds = one["seeds"]
    return _interval(one) if len(seeds) < 2 else f"{_interval(one)} ({min(seeds):+.3f} to {max(seeds):+.3f})"


def plot(result: Mapping[str, Any], skill: str = SKILL, forgetting: str = DRIFT) -> str:
    """Return the plot of a metric that should rise against one that should not."""
    points = [
        {"name": name, "skill": gaps[skill], "forgetting": gaps[forgetting]} for name, gaps in result["recipes"].items()
    ]
    return trade_off_svg(points, skill, forgetting)
