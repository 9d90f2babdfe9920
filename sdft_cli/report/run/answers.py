"""Answers to the same records: from evaluation to evaluation while training, and side by side in an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdft_cli.report.run.parts import Evaluation, Line, mapping, mappings, number

MOST_RECORDS, MOST_VERSIONS, MOST_SIDES, MOST_TEXT = 16, 8, 24, 1_500
"""Held-out records, versions of an answer, records of an evaluation, and characters of an answer on a page."""


@dataclass(frozen=True)
class Version:
    """An answer that was given in one evaluation or in some behind each other, and what was found about the last."""

    steps: str
    text: str
    facts: str


@dataclass(frozen=True)
class Answered:
    """A record and the versions of its answer; `left_out`: versions that are not shown."""

    record: str
    reference: str | None
    versions: tuple[Version, ...]
    left_out: int
    told: str


def facts_of(item: Line) -> str:
    """Say what was found about an answer: nats per token, whether it ended, what its call is."""
    found = []
    for name, top, bottom in (("KL", "kl", "rollout_tokens"), ("expert NLL", "nll", "reference_tokens")):
        total, count = number(item, top), number(item, bottom)
        if total is not None and count:
            found.append(f"{name} {total / count:.3f} nats per token")
    if item.get("finished") is False:
        found.append("cut off by the cap")
    flags = mapping(item.get("flags"))
    if flags:
        states = (("exact", "the expert's call"), ("valid", "a valid call"), ("named", "the right tool"))
        found.append(next((told for flag, told in states if flags.get(flag) is True), "not the right call"))
    if item.get("calls_unasked") is True:
        found.append("a call that was not asked for")
    return ", ".join(found)


def _versions(given: Sequence[tuple[Any, Line]]) -> list[Version]:
    """Join neighbours that say the same."""
    found: list[tuple[list[Any], Line]] = []
    for step, item in given:
        if found and found[-1][1].get("text") == item.get("text"):
            found[-1] = ([*found[-1][0], step], item)
        else:
            found.append(([step], item))
    return [
        Version(
            f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}",
            str(item.get("text", "")),
            facts_of(item),
        )
        for steps, item in found
    ]


def answered(lines: Sequence[Line]) -> tuple[list[Answered], int]:
    """Return the records of `heldout_answers.jsonl` with their answers, and how many records are not shown."""
    given: dict[str, list[tuple[Any, Line]]] = {}
    references: dict[str, str] = {}
    for line in lines:
        for item in mappings(line.get("answers")):
            name = str(item.get("record_id", "?"))
            given.setdefault(name, []).append((line.get("step", "?"), item))
            if isinstance(item.get("reference"), str):
                references.setdefault(name, item["reference"])
    found = []
    for name, items in list(given.items())[:MOST_RECORDS]:
        versions = _versions(items)
        head = MOST_VERSIONS // 2
        shown = versions if len(versions) <= MOST_VERSIONS else versions[:head] + versions[-head:]
        told = f"{len(items)} evaluation(s), " + (
            "always the same answer" if len(versions) == 1 else f"{len(versions)} different answers in a row"
        )
        found.append(Answered(name, references.get(name), tuple(shown), len(versions) - len(shown), told))
    return found, len(given) - len(found)


@dataclass(frozen=True)
class Side:
    """One model's answer."""

    model: str
    text: str
    facts: str


def sides(evaluation: Evaluation) -> tuple[list[tuple[str, str | None, tuple[Side, ...]]], int]:
    """Return an evaluation's answers: (record, expert's turn, a side per model), and how many records are not shown.

    Records come first where the models' calls fare differently, then where their texts differ.
    """
    models = mapping(evaluation.document.get("contenders"))
    by_record: dict[str, dict[str, Line]] = {}
    for model, found in models.items():
        for item in mappings(mapping(found).get("items")):
            by_record.setdefault(str(item.get("record_id", "?")), {})[model] = item

    def order(name: str) -> tuple[bool, bool]:
        items = list(by_record[name].values())
        flags = [mapping(item.get("flags")) for item in items]
        return all(x == flags[0] for x in flags), all(item.get("text") == items[0].get("text") for item in items)

    names = sorted(by_record, key=order)
    shown = [
        (
            name,
            evaluation.references.get(name),
            tuple(Side(model, str(item.get("text", "")), facts_of(item)) for model, item in by_record[name].items()),
        )
        for name in names[:MOST_SIDES]
    ]
    return shown, len(names) - len(shown)


def plain_turn(content: str, calls: Sequence[Mapping[str, str]]) -> str:
    """Write an expert's turn for a reader: its text, and its calls as `name(arguments)`."""
    return "\n".join([*([content] if content else []), *(f"{call['name']}({call['arguments']})" for call in calls)])
