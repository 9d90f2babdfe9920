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
   where calls can be scored on no record, this is left out;
4. for each kind of turn, calls and text: the probability that the teacher gives the expert's first token, the share of
   turns that it would write greedily to the end, the share of its own answers that begin as its block does, and the two
   lifts of this kind alone, none of which may be wholly beyond its bound (`gate.first_token`, `gate.copied`,
   `gate.begins_with_block`, 0).

1 and 2 are claims, so noise must be excluded. All of them must hold together, which makes a false pass rarer than one
interval alone would, so no correction for several tests is needed. 3 is a safeguard: agreement is yes or no per
record, so on a few dozen records its interval easily spans 30 points, and a base that already agrees nearly always has
no room to rise. To ask for a rise would stop good runs; an interval wholly below 0 is evidence that the reference
spoils the behaviour that the student will be trained towards. 4 looks at what the teacher itself would do: an average
over tokens hides how its answers begin, and the student learns that from it before anything else.

Differences are paired by record and resampled by session. Likelihood is weighted by the tokens of the expert's turn,
all else counts each record once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sdft_cli.config import GateSettings
from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.parallel.processes import ALONE, Processes
from sdft_cli.engine.passes.decode import Rollout
from sdft_cli.engine.passes.executors import answer_states, plan_passes
from sdft_cli.engine.score.gate_records import other_records
from sdft_cli.engine.score.scoring import Role, TokenScores, answer_text, decode, group_of, token_scores
from sdft_cli.engine.score.verdict import GateItem, GateResult, judge, undecided
from sdft_cli.errors import UsageError
from sdft_cli.prompts.chat import ChatPrompts
from sdft_cli.prompts.tool_scores import agrees
from sdft_cli.records import Record

Progress = Callable[[str, float, float], None]


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
    processes: Processes = ALONE,
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
        processes: each scores a share of the records, and all judge all of them.

    Raises:
        UsageError: `shuffle` with fewer than three records.
        VerificationError: the model's log-likelihoods are not finite.
    """
    if len(set(map(group_of, records))) < 2:
        return undecided(len(records), settings, split, shuffle, seed)
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

    def work(mine: list[int]) -> list[GateItem]:
        n = len(mine)
        asked, controls, expected = (
            [rows[i] for rows in of for i in mine] for of in ((without, with_shown), (with_control,), (references,))
        )
        told = lambda done: progress("Decoding answers", done, 2 * n)  # noqa: E731
        told(0)
        answers = decode(role, asked, prompts, settings.max_new_tokens, max_decode_tokens, told=told)
        every = [*asked, *controls]
        scored = _scored(role, every, expected * 3, prompts.turn_end_id, max_tokens_per_pass, progress)
        return [
            _item(records[i], records[shown[i]], records[control[i]], scored[place::n], answers[place::n], prompts)
            for place, i in enumerate(mine)
        ]

    items = processes.spread(without, work, backend.sharing != "none")
    return judge(items, settings, split=split, shuffled=shuffle, seed=seed)


def _item(
    record: Record,
    shown: Record,
    control: Record,
    scored: Sequence[TokenScores],
    answers: Sequence[Rollout],
    prompts: ChatPrompts,
) -> GateItem:
    """Put one record's numbers together; `scored` and `answers` are in the order without, with, control."""
    texts = [answer_text(answer, prompts) for answer in answers]
    scorable = prompts.scores_calls(record)
    agree = [
        agrees(prompts.parse(text, record.tools), answer.finished, record.reference) if scorable else None
        for text, answer in zip(texts, answers, strict=True)
    ]
    without, with_own, with_other = scored
    block = prompts.teacher.opening
    return GateItem(
        record_id=record.record_id,
        session_id=record.row.session_id,
        group=group_of(record),
        is_tool_turn=bool(record.reference.tool_calls),
        reference_tokens=len(with_own.log_probs),
        shown_record_id=shown.record_id,
        control_record_id=control.record_id,
        nll_without=without.nll,
        nll_with=with_own.nll,
        nll_control=with_other.nll,
        first_without=without.first,
        first_with=with_own.first,
        copied=with_own.is_greedy,
        begins_with_block=_begins_with(block, texts[1], prompts.reference_text(shown.reference)) if block else None,
        agrees_without=agree[0],
        agrees_with=agree[1],
        text_without=texts[0],
        text_with=texts[1],
    )


def _begins_with(block: str, answer: str, reference: str) -> bool:
    """Say whether an answer begins with the block's text, unless the turn that was shown does so itself."""
    return answer.lstrip().startswith(block) and not reference.lstrip().startswith(block)


def _scored(
    role: Role,
    prompt_ids: Sequence[list[int]],
    answers: Sequence[list[int]],
    pad_id: int,
    max_tokens: int,
    progress: Progress,
) -> list[TokenScores]:
    """Score each answer after its prompt. The prompts of one record share their beginning, and so passes."""
    rows = [[*x, *y] for x, y in zip(prompt_ids, answers, strict=True)]
    found: dict[int, TokenScores] = {}
    with role.weights(role.scoring):
        for chosen in plan_passes(role.backend, rows, max_tokens):
            progress("Scoring the expert's turns", len(found), len(rows))
            ids = [answers[i] for i in chosen]
            states = answer_states(role.backend, [prompt_ids[i] for i in chosen], ids, pad_id)
            found.update(zip(chosen, token_scores(states, role.backend, ids), strict=True))
    progress("Scoring the expert's turns", len(found), len(rows))
    return [found[i] for i in range(len(rows))]
