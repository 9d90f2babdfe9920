"""Tables of an evaluation: every model's numbers, and each pair's differences with what can be said of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from sdft_cli.report.terminal import table

Form = str
SECTIONS: tuple[tuple[str, str, tuple[tuple[str, str, Form], ...]], ...] = (
    (
        "Did it learn?",
        "summary",
        (
            ("expert NLL, nats per token", "expert_nll_per_token", ".3f"),
            ("KL(student||teacher), nats per token", "kl_per_token", ".3f"),
            ("rollout length, tokens", "rollout_length", ".1f"),
            ("finished within the cap", "finished_share", ".1%"),
            ("tool turns: calls all closed", "tool_terminated_share", ".1%"),
            ("tool turns: call parses", "tool_parsed_share", ".1%"),
            ("tool turns: right tool", "tool_named_share", ".1%"),
            ("  and required arguments", "tool_required_share", ".1%"),
            ("  and no unknown argument", "tool_known_share", ".1%"),
            ("  and arguments valid", "tool_valid_share", ".1%"),
            ("  and the expert's arguments", "tool_exact_share", ".1%"),
            ("other turns: chrF of the text", "prose_chrf", ".1f"),
            ("other turns: call not asked for", "unasked_call_share", ".1%"),
        ),
    ),
    (
        "Did it forget?",
        "drift",
        (
            ("KL(base||model), nats per token", "drift_kl", ".4f"),
            ("  95th percentile of tokens", "kl_p95_of_tokens", ".4f"),
            ("same likeliest word as the base", "drift_same_top", ".1%"),
            ("entropy, nats per token", "entropy", ".3f"),
        ),
    ),
    ("", "questions", (("questions right", "questions_right", ".1%"),)),
    (
        "Does it copy or make things up?",
        "summary",
        (
            ("speaks of a reference it never saw", "mentions_reference_share", ".1%"),
            ("runs of 6 words from the expert's turn only", "copied_share", ".1%"),
            ("names a path that the context has not", "unknown_path_share", ".1%"),
        ),
    ),
)


def _sections(result: Mapping[str, Any]) -> list[tuple[str, str, tuple[tuple[str, str, Form], ...]]]:
    """Return the sections, with the tasks of lm-evaluation-harness that were run."""
    first = next(iter(result["contenders"].values()))
    tasks = first.get("harness", {}).get("summary", {})
    return [*SECTIONS, ("lm-evaluation-harness", "harness", tuple((key, key, ".3f") for key in tasks))]


def _summary(contender: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    found = contender if part == "summary" else contender.get(part, {})
    summary: Mapping[str, Any] = found.get("summary", {})
    return summary


def _cell(value: float | None, form: Form) -> str:
    return "-" if value is None else format(value, form)


def _signed(value: float, form: Form) -> str:
    """A difference; that of two shares is in percentage points."""
    return format(value, "+" + form).replace("%", " pp")


def summaries(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of an evaluation without its items."""
    parts = ("summary", "drift", "questions", "harness")
    return {
        "contenders": {
            name: {"kind": found["kind"]} | {part: _summary(found, part) for part in parts if _summary(found, part)}
            for name, found in result["contenders"].items()
        },
        "differences": result["differences"],
        "facts": result["facts"],
    }


def values_rows(result: Mapping[str, Any]) -> list[tuple[str, dict[str, str]]]:
    """Return (label, {model: value as text}) for every number that some model has, in the order of the report."""
    rows = []
    for _, part, lines in _sections(result):
        for label, key, form in lines:
            cells = {name: _summary(found, part).get(key) for name, found in result["contenders"].items()}
            if any(value is not None for value in cells.values()):
                rows.append((label, {name: _cell(value, form) for name, value in cells.items()}))
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


def difference_table(result: Mapping[str, Any], key: str) -> RenderableType:
    """Differences of a pair; those whose interval leaves 0 out are marked, those that are 0 are told in a line.

    Numbers that only a few of the sessions have are told too.
    """
    gaps = result["differences"][key]
    confidence = result["config"]["confidence"]
    rows, equal, few = [], [], []
    for _, part, lines in _sections(result):
        for label, name, form in lines:
            gap, plain = gaps.get(name), label.strip().removeprefix("and ")
            if gap is None:
                continue
            if gap["discordant"]:
                rows.append((label, *_difference_cells(gap, form)))
            else:
                equal.append(plain + (f" (n shows {_detectable(gap, form)})" if gap["detectable"] else ""))
            if part == "summary" and gap["few_sessions"] and gap["sessions"] < result["facts"]["groups"]:
                few.append(f"{plain} ({gap['sessions']})")
    columns = ["", f"difference [{confidence:.0%} interval]", "differ", "n shows"]
    return table(
        f"{key}, paired by item, resampled by session",
        columns,
        rows,
        "*: the interval leaves 0 out. differ: the items on which the two differ, of all. n shows: the difference that "
        "would be found with a chance of 80%."
        + (f" No item differs: {', '.join(equal)}." if equal else "")
        + (f" Of few sessions: {', '.join(few)}." if few else ""),
    )


def _detectable(gap: Mapping[str, Any], form: Form) -> str:
    return "-" if gap["detectable"] is None else _signed(gap["detectable"], form)[1:]


def _difference_cells(gap: Mapping[str, Any], form: Form) -> tuple[str, ...]:
    differ = f"{gap['discordant']}/{gap['items']}"
    if gap["low"] is None:
        return f"{_signed(gap['value'], form)}, one session only", differ, "-"
    value, low, high = (_signed(gap[key], form).removesuffix(" pp") for key in ("value", "low", "high"))
    unit, mark = " pp" * form.endswith("%"), " " if gap["low"] <= 0 <= gap["high"] else "*"
    return f"{value} [{low}, {high}]{unit} {mark}", differ, _detectable(gap, form)


def notes(result: Mapping[str, Any]) -> list[str]:
    """Return what a reader has to know before believing the numbers."""
    facts, found = result["facts"], []
    cut, calls = facts["turns_over_the_cap"], facts["tool_turns_over_the_cap"]
    if cut:
        found.append(
            f"{cut} of the expert's turns, {calls} of them with calls, are longer than the cap of "
            f"{result['config']['max_new_tokens']} tokens: no answer can equal them (--max-new-tokens)."
        )
    lost = facts["tool_turns_that_the_syntax_cannot_represent"]
    if lost:
        found.append(
            f"{lost} of {facts['tool_turns']} expert's calls cannot be told apart in the model's syntax: no answer can "
            "equal them."
        )
    if facts["expert_unknown_path_share"]:
        found.append(f"The expert names a new path in {facts['expert_unknown_path_share']:.1%} of these turns.")
    if facts["groups"] < facts["sessions"]:
        found.append(
            f"Some of the {facts['sessions']} sessions share text: {facts['groups']} groups of them are resampled."
        )
    if facts["groups"] < 10:
        found.append(f"{facts['groups']} independent sessions are few: read the intervals as rough.")
    return found


def _group_table(result: Mapping[str, Any], part: str, title: str) -> RenderableType:
    contenders = result["contenders"]
    groups: Sequence[str] = sorted({name for found in contenders.values() for name in found[part]})
    shown = (("NLL", "expert_nll_per_token", ".3f"), ("right tool", "tool_named_share", ".0%"))
    rows = []
    for group in groups:
        counted = next(iter(contenders.values()))[part][group]["records"]
        cells = [_cell(found[part][group].get(key), form) for found in contenders.values() for _, key, form in shown]
        rows.append((group, counted, *cells))
    columns = [title, "records", *(f"{name}: {label}" for name in contenders for label, _, _ in shown)]
    return table(f"By {title}", columns, rows)
