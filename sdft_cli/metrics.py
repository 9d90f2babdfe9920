"""Every number of an evaluation, defined once: how an item counts, what it is called, how and where it is shown.

`sdft eval`, the held-out evaluation while training, the live view, reports, cards and `sdft compare` read this table.
Nearly all are a ratio of two sums over items, so that models can be compared item by item. A new metric is registered
at the end of this file (docs/adding.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

Item = Mapping[str, Any]
"""One record, prompt, question or document under one model, as it stands in eval.json."""
Part = tuple[float, float]
"""(top, bottom) of one item: nats and tokens, or a flag and 1."""
About = Literal["records", "drift", "questions", "harness"]
"""The part of an evaluation whose items a metric is of."""
Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Metric:
    """One number of an evaluation.

    Attributes:
        about: which items it is of.
        section: of the report; sections come in the order of their first metric.
        key: its name in eval.json and heldout.jsonl.
        label: its name, with its unit, in reports and cards; empty: only the JSON file has it.
        form: how a value is written (a format specification); a difference of shares (`%`) is in percentage points.
        better: which way is better, if one is.
        count: how an item counts; None for an item that does not.
        yes_or_no: an item is 0 or 1.
        whole: the number of all items, where it is no ratio of sums; it then has no paired difference.
        brief: a short label and its format where there is little room: the live view, tables by group.
    """

    about: About
    section: str
    key: str
    label: str
    form: str
    better: Better
    count: Callable[[Item], Part | None] = lambda item: None
    yes_or_no: bool = False
    whole: Callable[[Sequence[Item]], float | None] | None = None
    brief: tuple[str, str] = ("", "")

    def of(self, items: Sequence[Item]) -> float | None:
        """Return sum(top) / sum(bottom) over the items that count; None if none does."""
        if self.whole:
            return self.whole(items)
        parts = [part for item in items if (part := self.count(item)) is not None]
        bottom = sum(b for _, b in parts)
        return sum(t for t, _ in parts) / bottom if bottom else None

    def cell(self, value: float | None) -> str:
        """Write a value."""
        return "-" if value is None else format(value, self.form)

    def signed(self, gap: float) -> str:
        """Write a difference; that of two shares is in percentage points."""
        return format(gap, "+" + self.form).replace("%", " pp")

    def in_brief(self, value: float | None) -> str:
        """Write a value behind the short label."""
        name, form = self.brief
        return f"{name} {'-' if value is None else format(value, form)}"


METRICS: dict[str, Metric] = {}
HELDOUT = [
    "kl_per_token",
    "expert_nll_per_token",
    "tool_valid_share",
    "tool_named_share",
    "unasked_call_share",
    "rollout_length",
    "finished_share",
]
"""The metrics of the held-out evaluation while training, in the order of heldout.jsonl."""


def register(metric: Metric) -> None:
    """Add a metric to the table.

    Raises:
        ValueError: there is one with this key.
    """
    if metric.key in METRICS:
        raise ValueError(f"two metrics are called {metric.key}")
    METRICS[metric.key] = metric


def metrics_of(contender: Mapping[str, Any]) -> list[Metric]:
    """Return all metrics in the order of the report, then those of the lm-evaluation-harness tasks that a model has."""
    sections = list(dict.fromkeys(metric.section for metric in METRICS.values()))
    ours = sorted(METRICS.values(), key=lambda metric: sections.index(metric.section))
    tasks = part_of(contender, "harness").get("higher_is_better", {})
    return [*ours, *(_of_task(key, higher) for key, higher in tasks.items())]


def _of_task(key: str, higher: bool | None) -> Metric:
    better: Better = "neither" if higher is None else "higher" if higher else "lower"

    def count(item: Item) -> Part | None:
        return (item["values"][key], 1.0) if key in item["values"] else None

    return Metric("harness", "lm-evaluation-harness", key, key, ".3f", better, count)


def part_of(contender: Mapping[str, Any], about: About) -> Mapping[str, Any]:
    """Return a part of a model's results, with its `summary` and `items`; empty where it was left out."""
    results: Mapping[str, Any] = contender if about == "records" else contender.get(about, {})
    return results


def summary(items: Sequence[Item], about: About) -> dict[str, float | None]:
    """Return every metric of a part of the evaluation."""
    return {metric.key: metric.of(items) for metric in METRICS.values() if metric.about == about}


def by_group(items: Sequence[Item], key: str) -> dict[str, dict[str, float | None]]:
    """Return the metrics of records by a property of them, e.g. `tools` or `position`, with the number of records."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item[key], []).append(item)
    return {name: {"records": len(some), **summary(some, "records")} for name, some in sorted(groups.items())}


def p95(values: Sequence[float]) -> float | None:
    """Return the 95th percentile; None of nothing."""
    import numpy as np

    return float(np.quantile(values, 0.95)) if len(values) else None


def _ratio(top: str, bottom: str) -> Callable[[Item], Part | None]:
    return lambda item: (float(item[top]), float(item[bottom]))


def _value(key: str) -> Callable[[Item], Part | None]:
    return lambda item: (float(item[key]), 1.0)


def _flag(key: str) -> Callable[[Item], Part | None]:
    return lambda item: (float(bool(item[key])), 1.0)


def _p95_of_prompts(key: str) -> Callable[[Sequence[Item]], float | None]:
    return lambda items: p95([i[key] / i["tokens"] for i in items])


def _p95_of_tokens(items: Sequence[Item]) -> float | None:
    return p95([kl for i in items for kl in i["token_kl"]])


def _prose(key: str) -> Callable[[Item], Part | None]:
    """Count a number of the other turns."""
    return lambda item: None if item["tools"] or item[key] is None else (float(item[key]), 1.0)


_learned, _copied = (partial(Metric, "records", s) for s in ("Did it learn?", "Does it copy or make things up?"))
_drift, _questions = (partial(Metric, about, "Did it forget?") for about in ("drift", "questions"))
_nats = partial(_learned, form=".3f", better="lower")
_mistake = partial(_copied, form=".1%", better="lower", yes_or_no=True)


def _tool(flag: str, label: str, brief: tuple[str, str] = ("", "")) -> Metric:
    """Make a metric of a flag of `ToolScore`, on the turns in which the expert called tools and calls can be scored."""

    def count(item: Item) -> Part | None:
        return (float(item["flags"][flag]), 1.0) if item["flags"] else None

    return _learned(f"tool_{flag}_share", label, ".1%", "higher", count, True, brief=brief)


for _metric in (
    _nats(
        "expert_nll_per_token",
        "expert NLL, nats per token",
        count=_ratio("nll", "reference_tokens"),
        brief=("expert NLL", ".4f"),
    ),
    _nats(
        "kl_per_token",
        "KL(student||teacher), nats per token",
        count=_ratio("kl", "rollout_tokens"),
        brief=("KL", ".4f"),
    ),
    _learned(
        "rollout_length", "rollout length, tokens", ".1f", "neither", _value("rollout_tokens"), brief=("length", ".1f")
    ),
    _learned(
        "finished_share", "finished within the cap", ".1%", "higher", _flag("finished"), True, brief=("finished", ".0%")
    ),
    _tool("terminated", "tool turns: calls all closed"),
    _tool("parsed", "tool turns: call parses"),
    _tool("named", "tool turns: right tool", brief=("right tool", ".0%")),
    _tool("required", "  and required arguments"),
    _tool("known", "  and no unknown argument"),
    _tool("valid", "  and arguments valid", brief=("valid calls", ".0%")),
    _tool("exact", "  and the expert's arguments"),
    _learned("prose_chrf", "other turns: chrF of the text", ".1f", "higher", _prose("chrf")),
    _learned(
        "unasked_call_share",
        "other turns: call not asked for",
        ".1%",
        "lower",
        _prose("calls_unasked"),
        True,
        brief=("unasked", ".0%"),
    ),
    _drift("drift_kl", "KL(base||model), nats per token", ".4f", "lower", _ratio("kl", "tokens")),
    _drift("kl_p95_of_tokens", "  95th percentile of tokens", ".4f", "lower", whole=_p95_of_tokens),
    _drift("kl_p95_of_prompts", "", ".4f", "lower", whole=_p95_of_prompts("kl")),
    _drift("drift_same_top", "same top-1 token as the base", ".1%", "higher", _ratio("same_top", "tokens")),
    _drift("entropy", "entropy, nats per token", ".3f", "neither", _ratio("entropy", "tokens")),
    _drift("entropy_p95_of_prompts", "", ".3f", "neither", whole=_p95_of_prompts("entropy")),
    _questions("questions_right", "questions right", ".1%", "higher", _flag("correct"), True),
    _mistake("mentions_reference_share", "speaks of a reference it never saw", count=_flag("mentions_reference")),
    _copied("copied_share", "runs of 6 words from the expert's turn only", ".1%", "neither", _value("copied_share")),
    _mistake("unknown_path_share", "names a path that the context has not", count=_flag("unknown_paths")),
):
    register(_metric)
