"""The teacher-lift gate: does the expert's turn in the teacher's prompt teach anything?

Self-distillation needs a teacher that is better than the student only through the reference in its prompt (SDFT, arXiv
2601.19897, sec. 3). So before step 1 the base model (adapter off) is scored on held-out records, with three prompts:

    without   the student's prompt
    with      the teacher's prompt, which shows the record's own reference
    control   the teacher's prompt with another record's reference

The control is there because any reference shows the form of an answer, and that alone makes the expert's turn likelier.
The gate passes if

1. the lift in likelihood, NLL(without) - NLL(with) of the expert's turn in nats per token, has an interval above 0;
2. NLL(control) - NLL(with) has an interval above 0;
3. the lift in agreement, agree(with) - agree(without) of greedy answers, has an interval that is not wholly below 0;
   where calls can be scored on no record, this is left out.

1 and 2 are claims, so noise must be excluded. All of them must hold together, which makes a false pass rarer than one
interval alone would, so no correction for several tests is needed. 3 is a safeguard: agreement is yes or no per
record, so on a few dozen records its interval easily spans 30 points, and a base that already agrees nearly always has
no room to rise. To ask for a rise would stop good runs; an interval wholly below 0 is evidence that the reference
spoils the behaviour that the student will be trained towards. Differences are paired by record and resampled by
session. Likelihood is weighted by the tokens of the expert's turn, agreement counts each record once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sdft_cli.config import GateSettings
from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.passes.decode import Rollout
from sdft_cli.engine.passes.executors import answer_states, plan_passes
from sdft_cli.engine.train.scoring import Role, answer_text, choose_records, decode, group_of, log_likelihood
from sdft_cli.errors import DataError, UsageError, VerificationError
from sdft_cli.intervals import FEW, Interval, session_interval
from sdft_cli.prompts.chat import ChatPrompts
from sdft_cli.prompts.tool_scores import agrees
from sdft_cli.records import Dataset, Record

Progress = Callable[[str, int, int], None]
REMEDY = "use another teacher template or a larger model, or set gate.action=warn to train all the same"


@dataclass(frozen=True)
class GateItem:
    """One record under the three prompts. NLL is that of the expert's turn, in nats, summed over its tokens.

    `agrees_without`, `agrees_with`: both None where calls cannot be scored.
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
    agrees_without: bool | None
    agrees_with: bool | None
    text_without: str
    text_with: str


@dataclass(frozen=True)
class Lift:
    """One criterion: an interval, what is asked of it, and whether it holds."""

    interval: Interval
    rule: Literal["above 0", "not below 0"]

    @property
    def passed(self) -> bool:
        """An interval that could not be formed passes nothing."""
        if self.interval.low is None or self.interval.high is None:
            return False
        return self.interval.low > 0 if self.rule == "above 0" else self.interval.high >= 0


@dataclass(frozen=True)
class GateResult:
    """The outcome. `lifts` and `items` are empty if the gate could not decide."""

    passed: bool
    verdict: str
    notes: tuple[str, ...]
    lifts: dict[str, Lift]
    items: tuple[GateItem, ...]
    settings: GateSettings
    split: str
    shuffled: bool
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Return the whole outcome as a JSON document; the same input gives the same document."""
        return {
            "passed": self.passed,
            "verdict": self.verdict,
            "notes": list(self.notes),
            "lifts": {
                name: {**lift.interval.to_json(), "rule": lift.rule, "passed": lift.passed}
                for name, lift in self.lifts.items()
            },
            "summary": _summary(self.items) if self.items else None,
            "items": [asdict(item) for item in self.items],
            "settings": self.settings.model_dump(mode="json"),
            "split": self.split,
            "shuffled": self.shuffled,
            "seed": self.seed,
        }


def gate_records(dataset: Dataset, count: int) -> tuple[list[Record], str]:
    """Choose the records to score and name their split: validation, or train if few sessions are held out.

    Few are fewer independent ones than `FEW` and than there are in train. The gate scores the base model, which has
    seen neither.

    Raises:
        DataError: the dataset has no record.
    """
    held_out, trained_on = (len(set(map(group_of, dataset.split(name)))) for name in ("validation", "train"))
    split = "validation" if held_out >= min(FEW, trained_on) else "train"
    records = choose_records(dataset.split(split), count)
    if not records:
        raise DataError("The dataset has no training record: prepare one with more sessions.")
    return records, split


def other_records(records: Sequence[Record]) -> list[list[int]]:
    """Return ways to give each record the reference of another one, the best first.

    Each is a permutation without a fixed point, and no two agree anywhere. With the records sorted by the tools that
    they call, the k-th rotation is one for k = 1 .. n - 1. Best is the rotation that least often gives a record a turn
    equal to its own, then one of its own session, then one with the same tools.
    """
    tools = [sorted(call.name for call in r.reference.tool_calls) for r in records]
    order = sorted(range(len(records)), key=lambda i: (tools[i], records[i].record_id))

    def rotated(k: int) -> list[int]:
        found = [0] * len(order)
        for place, i in enumerate(order):
            found[i] = order[(place + k) % len(order)]
        return found

    def cost(of: Sequence[int]) -> tuple[int, int, int]:
        pairs = [(i, j, records[i], records[j]) for i, j in enumerate(of)]
        return (
            sum(_same_turn(a, b) for _, _, a, b in pairs),
            sum(a.row.session_id == b.row.session_id for _, _, a, b in pairs),
            sum(tools[i] == tools[j] for i, j, _, _ in pairs),
        )

    return sorted((rotated(k) for k in range(1, len(order))), key=cost)


def _same_turn(a: Record, b: Record) -> bool:
    def turn(record: Record) -> object:
        return record.reference.content, [(c.name, c.arguments) for c in record.reference.tool_calls]

    return turn(a) == turn(b)


def run_gate(
    backend: Backend,
    prompts: ChatPrompts,
    records: Sequence[Record],
    settings: GateSettings,
    *,
    max_tokens_per_pass: int,
    max_decode_tokens: int,
    seed: int,
    split: str = "validation",
    shuffle: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> GateResult:
    """Score the base model on records and judge it. Draws no number from torch's generators and leaves no trace.

    Args:
        backend: a model; its adapter, if it has one, is off in here.
        records: what `gate_records` chose.
        max_tokens_per_pass: cap on a scoring pass, tokens as the backend runs them (`optim.max_tokens_per_pass`).
        max_decode_tokens: cap on a decoding pass, padded tokens (`rollout.max_tokens_per_pass`).
        seed: of the bootstrap.
        split: where the records come from; the verdict says it.
        shuffle: show each record another one's reference, as a check of the gate itself: it should fail then.

    Raises:
        UsageError: `shuffle` with fewer than three records.
        VerificationError: the model's log-likelihoods are not finite.
    """
    if len(set(map(group_of, records))) < 2:
        return _undecided(records, settings, split, shuffle, seed)
    others = other_records(records)
    if shuffle and len(others) < 2:
        raise UsageError("--shuffle-references needs at least three records: raise --records.")
    shown, control = others[:2] if shuffle else (list(range(len(records))), others[0])
    role = Role(backend, "base", "base")
    without = [prompts.student_ids(r) for r in records]
    with_shown, with_control = (
        [prompts.teacher_ids(r, records[i].reference) for r, i in zip(records, of, strict=True)]
        for of in (shown, control)
    )
    references = [prompts.reference_ids(r) for r in records]
    prompts.encoder.forget()
    progress("Decoding answers", 0, 2 * len(records))
    answers = decode(role, [*without, *with_shown], prompts, settings.max_new_tokens, max_decode_tokens)
    progress("Decoding answers", 2 * len(records), 2 * len(records))
    every = [*without, *with_shown, *with_control]
    nll = _nll(role, every, references * 3, prompts.turn_end_id, max_tokens_per_pass, progress)
    n = len(records)
    items = [
        _item(record, records[shown[i]], records[control[i]], len(references[i]), nll[i::n], answers[i::n], prompts)
        for i, record in enumerate(records)
    ]
    return judge(items, settings, split=split, shuffled=shuffle, seed=seed)


def _item(
    record: Record,
    shown: Record,
    control: Record,
    reference_tokens: int,
    nll: Sequence[float],
    answers: Sequence[Rollout],
    prompts: ChatPrompts,
) -> GateItem:
    """Put one record's numbers together; `nll` and `answers` are in the order without, with, control."""
    texts = [answer_text(answer, prompts) for answer in answers]
    scorable = prompts.scores_calls(record)
    agree = [
        agrees(prompts.parse(text, record.tools), answer.finished, record.reference) if scorable else None
        for text, answer in zip(texts, answers, strict=True)
    ]
    return GateItem(
        record_id=record.record_id,
        session_id=record.row.session_id,
        group=group_of(record),
        is_tool_turn=bool(record.reference.tool_calls),
        reference_tokens=reference_tokens,
        shown_record_id=shown.record_id,
        control_record_id=control.record_id,
        nll_without=nll[0],
        nll_with=nll[1],
        nll_control=nll[2],
        agrees_without=agree[0],
        agrees_with=agree[1],
        text_without=texts[0],
        text_with=texts[1],
    )


def _nll(
    role: Role,
    prompt_ids: Sequence[list[int]],
    answers: Sequence[list[int]],
    pad_id: int,
    max_tokens: int,
    progress: Progress,
) -> list[float]:
    """Return -log p of each answer after its prompt. The prompts of one record share their beginning, and so passes."""
    rows = [[*x, *y] for x, y in zip(prompt_ids, answers, strict=True)]
    found: dict[int, float] = {}
    with role.weights(role.scoring):
        for chosen in plan_passes(role.backend, rows, max_tokens):
            progress("Scoring the expert's turns", len(found), len(rows))
            ids = [answers[i] for i in chosen]
            states = answer_states(role.backend, [prompt_ids[i] for i in chosen], ids, pad_id)
            found.update(zip(chosen, (-x for x in log_likelihood(states, role.backend, ids)), strict=True))
    progress("Scoring the expert's turns", len(found), len(rows))
    return [found[i] for i in range(len(rows))]


def judge(
    items: Sequence[GateItem], settings: GateSettings, *, split: str = "validation", shuffled: bool = False, seed: int
) -> GateResult:
    """Judge scored records; pure arithmetic.

    Raises:
        VerificationError: a log-likelihood is not finite.
    """
    if not all(math.isfinite(x) for i in items for x in (i.nll_without, i.nll_with, i.nll_control)):
        raise VerificationError("The base model's log-likelihoods are not finite: check the model, or use float32.")
    tokens = [float(i.reference_tokens) for i in items]
    lifts = {
        "likelihood": _lift(
            items, [(i.nll_without - i.nll_with) / i.reference_tokens for i in items], tokens, settings, seed, "above 0"
        ),
        "likelihood_over_control": _lift(
            items, [(i.nll_control - i.nll_with) / i.reference_tokens for i in items], tokens, settings, seed, "above 0"
        ),
    }
    scored = _scored(items)
    if len({i.group for i in scored}) > 1:
        gains = [float(bool(i.agrees_with)) - float(bool(i.agrees_without)) for i in scored]
        lifts["agreement"] = _lift(scored, gains, [1.0] * len(scored), settings, seed, "not below 0")
    passed = all(lift.passed for lift in lifts.values())
    verdict = _verdict(passed, lifts, len(items), split, shuffled)
    notes = (*_notes(split, len({i.group for i in items})), *_notes_on_calls(items))
    return GateResult(passed, verdict, notes, lifts, tuple(items), settings, split, shuffled, seed)


def _lift(
    items: Sequence[GateItem],
    values: Sequence[float],
    weights: Sequence[float],
    settings: GateSettings,
    seed: int,
    rule: Literal["above 0", "not below 0"],
) -> Lift:
    groups = [i.group for i in items]
    return Lift(session_interval(values, weights, groups, settings.confidence, settings.resamples, seed), rule)


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
        "agreement_records": len(scored),
        "agreement_without": sum(bool(i.agrees_without) for i in scored) / len(scored) if scored else None,
        "agreement_with": sum(bool(i.agrees_with) for i in scored) / len(scored) if scored else None,
    }


_MEANING = {
    "likelihood": "the likelihood of the expert's turn over no reference",
    "likelihood_over_control": "the likelihood of the expert's turn over another record's reference",
    "agreement": "the agreement of its own answers with the expert",
}


def _verdict(passed: bool, lifts: dict[str, Lift], records: int, split: str, shuffled: bool) -> str:
    where = f"on {records} {split} records" + (" with shuffled references" if shuffled else "")
    if passed:
        gain, own = lifts["likelihood"].interval.value, lifts["likelihood_over_control"].interval.value
        return (
            f"The teacher-lift gate passes: {where} the reference makes the expert's turn likelier by {gain:.3f} nats "
            f"per token, by {own:.3f} more than another record's reference does."
        )
    failed = [
        f"{_MEANING[name]} ({x.interval.value:+.3f}, interval {x.interval.low:+.3f} to {x.interval.high:+.3f})"
        for name, x in lifts.items()
        if not x.passed
    ]
    return f"The teacher-lift gate fails: {where} the reference does not lift {', nor '.join(failed)}: {REMEDY}."


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


def _undecided(records: Sequence[Record], settings: GateSettings, split: str, shuffled: bool, seed: int) -> GateResult:
    verdict = (
        f"The teacher-lift gate cannot decide: its {len(records)} {split} record(s) come from fewer than 2 sessions, "
        "which allows no interval: prepare with a larger --validation-fraction or more sessions, or set "
        "gate.action=warn."
    )
    return GateResult(False, verdict, _notes(split, FEW), {}, (), settings, split, shuffled, seed)
