"""Tables of an evaluation: every model's metrics, and each pair's differences with what can be said of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from sdft_cli.metrics import METRICS, About, Metric, metrics_of, part_of
from sdft_cli.report.terminal import table


def summaries(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of an evaluation without its items."""
    parts: tuple[About, ...] = ("records", "drift", "questions", "harness")

    def of(found: Mapping[str, Any]) -> dict[str, Any]:
        some = {part: part_of(found, part).get("summary") for part in parts}
        return {"summary" if part == "records" else part: values for part, values in some.items() if values}

    return {
        "contenders": {name: {"kind": found["kind"], **of(found)} for name, found in result["contenders"].items()},
        "differences": result["differences"],
        "facts": result["facts"],
    }


def _shown(result: Mapping[str, Any]) -> list[Metric]:
    return [metric for metric in metrics_of(next(iter(result["contenders"].values()))) if metric.label]


def values_rows(result: Mapping[str, Any]) -> list[tuple[str, dict[str, str]]]:
    """Return (label, {model: value as text}) for every metric that some model has, in the order of the report."""
    rows = []
    for metric in _shown(result):
        summaries = {
            name: part_of(found, metric.about).get("summary", {}) for name, found in result["contenders"].items()
        }
        values = {name: summary.get(metric.key) for name, summary in summaries.items()}
        if any(value is not None for value in values.values()):
            rows.append((metric.label, {name: metric.cell(value) for name, value in values.items()}))
    return rows


def shown_pairs(result: Mapping[str, Any]) -> list[str]:
    """Return the keys of the differences that are worth a table: against the base, and against controls."""
    kinds = {name: found["kind"] for name, found in result["contenders"].items()}
    wanted = (("tuned", "base"), ("control", "base"), ("control", "tuned"), ("merged", "tuned"))
    pairs = {f"{b} - {a}": (kinds[b], kinds[a]) for a, b in combinations(kinds, 2)}
    return [key for key in result["differences"] if pairs[key] in wanted]


def report(result: Mapping[str, Any], details: bool = False) -> RenderableType:
    """Show an evaluation; `details`: by tool and by position in the session too."""
    facts = result["facts"]
    title = f"{result['records']} held-out records of {facts['sessions']} sessions, {facts['tool_turns']} tool turns"
    names = list(result["contenders"])
    rows = [(label, *(cells[name] for name in names)) for label, cells in values_rows(result)]
    parts: list[RenderableType] = [table(title, ["", *names], rows)]
    parts += [difference_table(result, key) for key in shown_pairs(result)]
    parts += [Text(note) for note in notes(result)]
    if details:
        parts += [_group_table(result, "by_tool", "tool turns"), _group_table(result, "by_position", "position")]
    return Group(*parts)


DIFFERENCE_COLUMNS = ("difference", "differ", "n shows")


def difference_rows(result: Mapping[str, Any], key: str) -> tuple[list[tuple[str, ...]], str]:
    """Return the differences of a pair as (label, difference with its interval, differ, n shows), and the caption.

    Those whose interval leaves 0 out are marked; those that are 0, and metrics that only a few of the sessions have,
    are named in the caption.
    """
    gaps = result["differences"][key]
    rows, equal, few = [], [], []
    for metric in _shown(result):
        gap, plain = gaps.get(metric.key), metric.label.strip().removeprefix("and ")
        if gap is None:
            continue
        if gap["discordant"]:
            rows.append((metric.label, *_difference_cells(gap, metric)))
        else:
            equal.append(plain + (f" (n shows {_detectable(gap, metric)})" if gap["detectable"] else ""))
        if metric.about == "records" and gap["few_sessions"] and gap["sessions"] < result["facts"]["groups"]:
            few.append(f"{plain} ({gap['sessions']})")
    caption = (
        "*: the interval leaves 0 out. differ: the items on which the two differ, of all. n shows: the difference that "
        "would be found with a chance of 80%."
        + (f" No item differs: {', '.join(equal)}." if equal else "")
        + (f" Of few sessions: {', '.join(few)}." if few else "")
    )
    return rows, caption


def difference_table(result: Mapping[str, Any], key: str) -> RenderableType:
    """Show `difference_rows` on the terminal."""
    rows, caption = difference_rows(result, key)
    first, *others = DIFFERENCE_COLUMNS
    columns = ["", f"{first} [{result['config']['confidence']:.0%} interval]", *others]
    return table(f"{key}, paired by item, resampled by session", columns, rows, caption)


def _detectable(gap: Mapping[str, Any], metric: Metric) -> str:
    return "-" if gap["detectable"] is None else metric.signed(gap["detectable"])[1:]


def _difference_cells(gap: Mapping[str, Any], metric: Metric) -> tuple[str, ...]:
    differ = f"{gap['discordant']}/{gap['items']}"
    if gap["low"] is None:
        return f"{metric.signed(gap['value'])}, one session only", differ, "-"
    value, low, high = (metric.signed(gap[key]).removesuffix(" pp") for key in ("value", "low", "high"))
    unit, mark = " pp" * metric.form.endswith("%"), " " if gap["low"] <= 0 <= gap["high"] else "*"
    return f"{value} [{low}, {high}]{unit} {mark}", differ, _detectable(gap, metric)


def notes(result: Mapping[str, Any]) -> list[str]:
    """Return what a reader has to know before believing the numbers."""
    facts, notes = result["facts"], []
    cut, calls = facts["turns_over_the_cap"], facts["tool_turns_over_the_cap"]
    if cut:
        notes.append(
            f"{cut} of the expert's turns, {calls} of them with calls, are longer than the cap of "
            f"{result['config']['max_new_tokens']} tokens: no answer can equal them (--max-new-tokens)."
        )
    lost = facts["tool_turns_that_the_syntax_cannot_represent"]
    if lost:
        notes.append(
            f"{lost} of {facts['tool_turns']} expert's calls cannot be told apart in the model's syntax: scores about "
            "calls leave them out."
        )
    if facts.get("calls_not_scored"):
        notes.append(f"Tool calls could not be scored: {facts['calls_not_scored']}.")
    if facts["expert_unknown_path_share"]:
        notes.append(f"The expert names a new path in {facts['expert_unknown_path_share']:.1%} of these turns.")
    if facts["groups"] < facts["sessions"]:
        notes.append(
            f"Some of the {facts['sessions']} sessions share text: {facts['groups']} groups of them are resampled."
        )
    if facts["groups"] < 10:
        notes.append(f"{facts['groups']} independent sessions are few: read the intervals as rough.")
    return notes


def _group_table(result: Mapping[str, Any], part: str, title: str) -> RenderableType:
    contenders = result["contenders"]
    groups: Sequence[str] = sorted({name for found in contenders.values() for name in found[part]})
    shown = [METRICS[key] for key in ("expert_nll_per_token", "tool_named_share")]
    rows = []
    for group in groups:
        counted = next(iter(contenders.values()))[part][group]["records"]
        values = [(metric, found[part][group].get(metric.key)) for found in contenders.values() for metric in shown]
        rows.append((group, counted, *(metric.cell(value) for metric, value in values)))
    columns = [title, "records", *(f"{name}: {metric.brief[0]}" for name in contenders for metric in shown)]
    return table(f"By {title}", columns, rows)
