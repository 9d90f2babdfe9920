"""The gate's criteria, in plain arithmetic over scored records; `gate.py` says what they mean and why.

A criterion is an interval and a bound. What is claimed ("above") needs the whole interval; what only has to be not
worse than a bound ("not below", "not above") fails if the whole interval is on the other side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from sdft_cli.config import GateSettings
from sdft_cli.errors import VerificationError
from sdft_cli.intervals import FEW, Interval, session_interval

KINDS = ("tool", "prose")
"""Kinds of turns, judged apart: a wording can be right for calls and wrong for text."""


@dataclass(frozen=True)
class GateItem:
    """One record under the three prompts. NLL is that of the expert's turn, in nats, summed over its tokens.

    `first_without`, `first_with`: probability of its first token. `copied`: the teacher, decoding greedily, writes it
    to its last token. `begins_with_block`: the teacher's own answer begins as its block does; None where the wording
    has no block. `agrees_without`, `agrees_with`: both None where calls cannot be scored.
    """

    record_id: str
    session_id: str
    group: str
    is_tool_turn: bool
    reference_tokens: int
    shown_record_id: str
    control_record_id: str
    nll_without: float
    nll_with: float
    nll_control: float
    first_without: float
    first_with: float
    copied: bool
    begins_with_block: bool | None
    agrees_without: bool | None
    agrees_with: bool | None
    text_without: str
    text_with: str

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return KINDS[0] if self.is_tool_turn else KINDS[1]


@dataclass(frozen=True)
class Criterion:
    """An interval, what is asked of it, and whether it holds."""

    interval: Interval
    rule: Literal["above", "not below", "not above"]
    bound: float = 0.0

    @property
    def passed(self) -> bool:
        """An interval that could not be formed passes nothing."""
        low, high = self.interval.low, self.interval.high
        if low is None or high is None:
            return False
        return {"above": low > self.bound, "not below": high >= self.bound, "not above": low <= self.bound}[self.rule]

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {**self.interval.to_json(), "rule": f"{self.rule} {self.bound:g}", "passed": self.passed}


@dataclass(frozen=True)
class GateResult:
    """The outcome. `lifts`, `conduct` and `items` are empty if the gate could not decide.

    `lifts` are of all turns together, `conduct` what the teacher does, by kind of turn: keys `tool.first_token`, ...
    """

    passed: bool
    verdict: str
    notes: tuple[str, ...]
    lifts: dict[str, Criterion]
    items: tuple[GateItem, ...]
    settings: GateSettings
    split: str
    shuffled: bool
    seed: int
    conduct: dict[str, Criterion] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the whole outcome as a JSON document; the same input gives the same document."""
        return {
            "passed": self.passed,
            "verdict": self.verdict,
            "notes": list(self.notes),
            "lifts": {name: criterion.to_json() for name, criterion in self.lifts.items()},
            "conduct": {name: criterion.to_json() for name, criterion in self.conduct.items()},
            "summary": _summary(self.items) if self.items else None,
            "items": [asdict(item) for item in self.items],
            "settings": self.settings.model_dump(mode="json"),
            "split": self.split,
            "shuffled": self.shuffled,
            "seed": self.seed,
        }


def judge(
    items: Sequence[GateItem], settings: GateSettings, *, split: str = "validation", shuffled: bool = False, seed: int
) -> GateResult:
    """Judge scored records; pure arithmetic.

    Raises:
        VerificationError: a log-likelihood is not finite.
    """
    if not all(math.isfinite(x) for i in items for x in (i.nll_without, i.nll_with, i.nll_control)):
        raise VerificationError("The base model's log-likelihoods are not finite: check the model, or use float32.")
    intervals = Intervals(settings, seed)
    lifts = {
        "likelihood": Criterion(intervals.per_token(items, lift_over_none), "above"),
        "likelihood_over_control": Criterion(intervals.per_token(items, lift_over_control), "above"),
    }
    scored = _scored(items)
    if _decides(scored):
        gains = intervals.per_record(scored, lambda i: float(bool(i.agrees_with)) - float(bool(i.agrees_without)))
        lifts["agreement"] = Criterion(gains, "not below")
    conduct = {
        f"{kind}.{name}": criterion
        for kind in KINDS
        if _decides(of_kind := [i for i in items if i.kind == kind])
        for name, criterion in conduct_of(of_kind, intervals).items()
    }
    passed = all(criterion.passed for criterion in (*lifts.values(), *conduct.values()))
    verdict = _verdict(passed, lifts, conduct, len(items), split, shuffled)
    notes = (*_notes(split, len({i.group for i in items})), *_notes_on_kinds(items), *_notes_on_calls(items))
    return GateResult(passed, verdict, notes, lifts, tuple(items), settings, split, shuffled, seed, conduct)


def conduct_of(items: Sequence[GateItem], intervals: Intervals) -> dict[str, Criterion]:
    """Return what the teacher does on turns of one kind."""
    settings = intervals.settings
    found = {
        "first_token": Criterion(intervals.share(items, lambda i: i.first_with), "not below", settings.first_token),
        "copied": Criterion(intervals.share(items, lambda i: float(i.copied)), "not below", settings.copied),
    }
    if all(i.begins_with_block is not None for i in items):
        begins = intervals.share(items, lambda i: float(bool(i.begins_with_block)))
        found["begins_with_block"] = Criterion(begins, "not above", settings.begins_with_block)
    found["likelihood"] = Criterion(intervals.per_token(items, lift_over_none), "not below")
    found["likelihood_over_control"] = Criterion(intervals.per_token(items, lift_over_control), "not below")
    return found


def lift_over_none(item: GateItem) -> float:
    """By how many nats the reference makes the expert's turn likelier."""
    return item.nll_without - item.nll_with


def lift_over_control(item: GateItem) -> float:
    """By how many nats more than another record's reference does."""
    return item.nll_control - item.nll_with


@dataclass(frozen=True)
class Intervals:
    """Intervals over sessions, by the gate's settings."""

    settings: GateSettings
    seed: int

    def per_token(self, items: Sequence[GateItem], nats: Callable[[GateItem], float]) -> Interval:
        """Of a sum of nats per token of the expert's turn."""
        values = [nats(i) / i.reference_tokens for i in items]
        return self._of(items, values, [float(i.reference_tokens) for i in items])

    def per_record(self, items: Sequence[GateItem], value: Callable[[GateItem], float]) -> Interval:
        """Of a mean over records."""
        return self._of(items, [value(i) for i in items], [1.0] * len(items))

    def share(self, items: Sequence[GateItem], value: Callable[[GateItem], float]) -> Interval:
        """Of a mean of values from 0 to 1; where sessions are few, the interval could reach beyond them."""
        found = self.per_record(items, value)
        low, high = (None if bound is None else min(1.0, max(0.0, bound)) for bound in (found.low, found.high))
        return replace(found, low=low, high=high)

    def _of(self, items: Sequence[GateItem], values: Sequence[float], weights: Sequence[float]) -> Interval:
        groups, settings = [i.group for i in items], self.settings
        return session_interval(values, weights, groups, settings.confidence, settings.resamples, self.seed)


def _decides(items: Iterable[GateItem]) -> bool:
    """Whether items come from enough sessions for an interval."""
    return len({i.group for i in items}) > 1


def _scored(items: Sequence[GateItem]) -> list[GateItem]:
    """Return the items on which the agreement of both answers is known."""
    return [i for i in items if i.agrees_without is not None and i.agrees_with is not None]


def _notes_on_calls(items: Sequence[GateItem]) -> tuple[str, ...]:
    left_out = len(items) - len(_scored(items))
    if not left_out:
        return ()
    return (f"The agreement of answers leaves out {left_out} of {len(items)} records: their calls cannot be scored.",)


def _summary(items: Sequence[GateItem]) -> dict[str, Any]:
    scored = _scored(items)
    tokens = sum(i.reference_tokens for i in items)
    return {
        "records": len(items),
        "sessions": len({i.session_id for i in items}),
        "tool_turns": sum(i.is_tool_turn for i in items),
        "nll_without": sum(i.nll_without for i in items) / tokens,
        "nll_with": sum(i.nll_with for i in items) / tokens,
        "nll_control": sum(i.nll_control for i in items) / tokens,
        "first_without": sum(i.first_without for i in items) / len(items),
        "first_with": sum(i.first_with for i in items) / len(items),
        "agreement_records": len(scored),
        "agreement_without": sum(bool(i.agrees_without) for i in scored) / len(scored) if scored else None,
        "agreement_with": sum(bool(i.agrees_with) for i in scored) / len(scored) if scored else None,
    }


_MEANING = {
    "likelihood": "the likelihood of the expert's turn over no reference",
    "likelihood_over_control": "the likelihood of the expert's turn over another record's reference",
    "agreement": "the agreement of its own answers with the expert",
}


_CONDUCT = {
    "first_token": "gives the expert's first token a probability of {value:.2f}",
    "copied": "writes {value:.0%} of the expert's turns to the end",
    "begins_with_block": "begins {value:.0%} of its own answers with its block instead of an answer",
    "likelihood": "finds the expert's turn {value:+.3f} nats per token likelier than without a reference",
    "likelihood_over_control": "finds it {value:+.3f} nats per token likelier than with another record's reference",
}


def _verdict(
    passed: bool, lifts: dict[str, Criterion], conduct: dict[str, Criterion], records: int, split: str, shuffled: bool
) -> str:
    where = f"on {records} {split} records" + (" with shuffled references" if shuffled else "")
    if passed:
        gain, own = lifts["likelihood"].interval.value, lifts["likelihood_over_control"].interval.value
        return (
            f"The teacher-lift gate passes: {where} the reference makes the expert's turn likelier by {gain:.3f} nats "
            f"per token, by {own:.3f} more than another record's reference does."
        )

    def bounds(criterion: Criterion) -> str:
        return f"interval {criterion.interval.low:+.3f} to {criterion.interval.high:+.3f}"

    lost = [f"{_MEANING[name]} ({x.interval.value:+.3f}, {bounds(x)})" for name, x in lifts.items() if not x.passed]
    faults = [f"the reference does not lift {', nor '.join(lost)}"] if lost else []
    for name, x in conduct.items():
        kind, _, what = name.partition(".")
        if not x.passed:
            did = _CONDUCT[what].format(value=x.interval.value)
            faults.append(f"on {kind} turns the teacher {did} ({bounds(x)}; must be {x.rule} {x.bound:g})")
    broken = {name.rpartition(".")[2]: x.bound for name, x in conduct.items() if not x.passed}
    return f"The teacher-lift gate fails: {where} {'; '.join(faults)}: {_remedy(broken)}."


def _remedy(broken: dict[str, float]) -> str:
    """Say what to do about the criteria of conduct that are broken, which have these bounds."""
    ways = ["prepare with another --teacher-template (`sdft gate --templates own_turn,again,examples` ranks some)"]
    if "begins_with_block" in broken:
        ways = ["prepare with --teacher-template own_turn or again, which have no block"]
    ways.append("use a larger model")
    ways += [f"lower gate.{name} (now {broken[name]:g})" for name in ("first_token", "copied") if name in broken]
    return f"{', '.join(ways)}, or set gate.action=warn to train all the same"


def _notes_on_kinds(items: Sequence[GateItem]) -> list[str]:
    """Name the kinds of turns that are there and were not judged."""
    of_kinds = {kind: [i for i in items if i.kind == kind] for kind in KINDS}
    return [
        f"{kind.capitalize()} turns were not judged apart: {len(some)} record(s) of one session allow no interval; "
        "raise gate.records, or hold out more sessions."
        for kind, some in of_kinds.items()
        if some and not _decides(some)
    ]


def _notes(split: str, sessions: int) -> tuple[str, ...]:
    notes = []
    if split == "train":
        notes.append(f"Fewer than {FEW} independent sessions are held out, so the gate scored training records.")
    if sessions < FEW:
        notes.append(
            f"{sessions} independent sessions are few: below {FEW}, intervals take a normal distribution for granted; "
            "hold out more sessions."
        )
    return tuple(notes)


def undecided(records: int, settings: GateSettings, split: str, shuffled: bool, seed: int) -> GateResult:
    verdict = (
        f"The teacher-lift gate cannot decide: its {records} {split} record(s) come from fewer than 2 sessions, "
        "which allows no interval: prepare with a larger --validation-fraction or more sessions, or set "
        "gate.action=warn."
    )
    return GateResult(False, verdict, _notes(split, FEW), {}, (), settings, split, shuffled, seed)
