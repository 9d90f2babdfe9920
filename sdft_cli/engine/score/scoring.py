"""What a model does on records: its own answers, how far it is from the teacher there, the expert's likelihood.

`sdft eval`, the held-out evaluation while training and the teacher-lift gate all score a model through this module.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sdft_cli.config import DistillSettings
from sdft_cli.engine.models.adapters import EmaAdapter, Weights, weights
from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.models.head import Head
from sdft_cli.engine.models.modes import evaluating
from sdft_cli.engine.objective.loss import distillation_loss, first_choices, token_log_likelihood
from sdft_cli.engine.passes.decode import Rollout, generate, stop_tokens
from sdft_cli.engine.passes.decode_steps import row_seeds
from sdft_cli.engine.passes.executors import answer_states, plan_passes
from sdft_cli.engine.passes.padded import padded_passes
from sdft_cli.engine.passes.timing import watching_decoding
from sdft_cli.prompts.answers import Score, score
from sdft_cli.prompts.chat import ChatPrompts
from sdft_cli.records import Record


@dataclass(frozen=True)
class Role:
    """A model in one role: a backend and which of its weights are on (the cases of `adapters.weights`).

    `decoding` are the weights that answers are decoded with: the same ones, or `merged` for a trained adapter.
    """

    backend: Backend
    scoring: Weights
    decoding: Weights
    ema: EmaAdapter | None = None

    @contextmanager
    def weights(self, case: Weights) -> Iterator[None]:
        """These weights are on, without gradient and in eval mode; every module's mode is restored."""
        model = self.backend.model
        # No dropout: an evaluation repeats exactly and draws no random number.
        with evaluating(model), torch.no_grad(), weights(model, case, self.ema):
            yield


@dataclass(frozen=True)
class Encoded:
    """A record as token ids: both prompts and the expert's turn, the token that ends it included."""

    record: Record
    student: list[int]
    teacher: list[int]
    reference: list[int]


@dataclass(frozen=True)
class Item:
    """One record under one student, which the metrics of records count. Sums are over tokens, in nats.

    `group`: as `group_of`. `kl`, `rollout_tokens` and `finished` are of the rollout, `text` and its score of the greedy
    answer; without sampling the two are one.
    """

    record_id: str
    session_id: str
    group: str
    kl: float
    rollout_tokens: int
    finished: bool
    nll: float
    reference_tokens: int
    text: str
    score: Score

    def to_json(self) -> dict[str, Any]:
        """Return it flat, as it stands in eval.json; three flags stand beside `flags` too, None if not scored."""
        row = asdict(self)
        row |= row.pop("score")
        is_tool_turn = bool(row["tools"])
        shown = {flag: row["flags"].get(flag, None if is_tool_turn else False) for flag in ("parsed", "named", "valid")}
        return {**row, "is_tool_turn": is_tool_turn, **shown}


def group_of(record: Record) -> str:
    """Return what a record is not independent of: its session, and those that share text with it."""
    return record.session.group or record.row.session_id


def choose_records(records: Sequence[Record], count: int) -> list[Record]:
    """Choose `count` records, spread evenly over the sessions; the same ones in every run.

    Sessions, and the records of each, are ordered by a hash of their names, so neither the first sessions nor the
    first turns are favoured. One record of each session is taken, then a second one of each, and so on. They come in
    the order of `records`.
    """

    def place(name: str) -> bytes:
        return hashlib.sha256(name.encode()).digest()

    of_session: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda r: place(r.record_id)):
        of_session[record.row.session_id].append(record)
    rounds = sorted(
        (number, place(session), record.record_id)
        for session, found in of_session.items()
        for number, record in enumerate(found)
    )
    chosen = {record_id for _, _, record_id in rounds[:count]}
    return [record for record in records if record.record_id in chosen]


def encode(records: Sequence[Record], prompts: ChatPrompts) -> list[Encoded]:
    """Encode the prompts and the expert's turn of each record."""
    found = [Encoded(r, prompts.student_ids(r), prompts.teacher_ids(r), prompts.reference_ids(r)) for r in records]
    prompts.encoder.forget()
    return found


def plan(
    backend: Backend,
    records: Sequence[Record],
    prompts: ChatPrompts,
    max_new_tokens: int,
    max_tokens: int,
    max_records: int | None = None,
) -> list[list[int]]:
    """Cut records into passes of at most `max_tokens` tokens as `score_records` runs them: lists of indices."""
    answer = [prompts.turn_end_id]  # stands for the tokens that follow a prompt, whichever they will be
    longest = [prompts.teacher_ids(r) + answer * max(r.row.reference_tokens, max_new_tokens) for r in records]
    prompts.encoder.forget()
    return plan_passes(backend, longest, max_tokens, max_records)


def decode(
    role: Role,
    prompt_ids: Sequence[Sequence[int]],
    prompts: ChatPrompts,
    max_new_tokens: int,
    max_tokens: int | None = None,
    seed: int | None = None,
    told: Callable[[float], None] = lambda done: None,
    names: Sequence[str] | None = None,
) -> list[Rollout]:
    """Decode an answer to each prompt; prompts go together up to `max_tokens` padded tokens (None: all).

    Greedily, or with a `seed`, sampled from the model as it is: temperature 1, no cut of its tail. A sample depends on
    the seed and its prompt's name, which is its place where there are no `names`. `told` hears after each token how
    many answers are done; an answer counts by the share of its tokens.
    """
    stops = stop_tokens(role.backend, prompts.turn_end_ids)
    lengths = [len(ids) + max_new_tokens for ids in prompt_ids]
    passes = [list(range(len(lengths)))] if max_tokens is None else padded_passes(lengths, max_tokens)
    found: dict[int, Rollout] = {}
    temperature = None if seed is None else 1.0
    seeds = None if seed is None else row_seeds(seed, names or range(len(prompt_ids)))
    with role.weights(role.decoding):
        for rows in passes:
            batch, before = [prompt_ids[i] for i in rows], len(found)
            with watching_decoding(lambda share, n=len(rows), before=before: told(before + n * share)):  # type: ignore[misc]
                settings = (max_new_tokens, stops, prompts.turn_end_id, temperature)
                own = None if seeds is None else [seeds[i] for i in rows]
                answers = generate(role.backend, batch, *settings, seeds=own)
            found.update(zip(rows, answers, strict=True))
    told(len(lengths))
    return [found[i] for i in range(len(lengths))]


def answer_text(answer: Rollout, prompts: ChatPrompts) -> str:
    """Return an answer as text to the last character, control tokens too, without the token that ended it."""
    ids = answer.ids[:-1] if answer.finished else answer.ids
    return str(prompts.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def log_likelihood(states: Tensor, backend: Backend, answers: Sequence[Sequence[int]]) -> list[float]:
    """Return log p of each answer in nats, summed over its tokens, from the states (sum |y|, H) that predict them."""
    targets = torch.tensor([i for ids in answers for i in ids], device=states.device)
    found = token_log_likelihood(states, backend.head, targets)
    return [float(n.sum()) for n in found.split([len(ids) for ids in answers])]


@dataclass(frozen=True)
class TokenScores:
    """An answer under a prompt: log p of each token in nats, and whether greedy decoding would write all of them."""

    log_probs: list[float]
    is_greedy: bool

    @property
    def nll(self) -> float:
        """-log p of the answer in nats."""
        return -math.fsum(self.log_probs)

    @property
    def first(self) -> float:
        """The probability of its first token."""
        return math.exp(self.log_probs[0])


def token_scores(states: Tensor, backend: Backend, answers: Sequence[Sequence[int]]) -> list[TokenScores]:
    """Score answers by the states (sum |y|, H) that predict their tokens."""
    targets = torch.tensor([i for ids in answers for i in ids], device=states.device)
    lengths = [len(ids) for ids in answers]
    log_probs = token_log_likelihood(states, backend.head, targets).split(lengths)
    hits = (first_choices(states, backend.head) == targets).split(lengths)
    return [TokenScores(p.tolist(), bool(hit.all())) for p, hit in zip(log_probs, hits, strict=True)]


def score_records(
    student: Role,
    teacher: Role,
    batch: Sequence[Encoded],
    prompts: ChatPrompts,
    max_new_tokens: int,
    max_decode_tokens: int | None = None,
    seed: int | None = None,
    prose: Callable[[str, str], float] | None = None,
    told: Callable[[str, float], None] = lambda phase, done: None,
) -> list[Item]:
    """Score a student on records that fit into one pass.

    The answers are the student's own, decoded greedily. The divergence KL(student||teacher), with the expert's turn in
    the teacher's prompt, is that on the student's rollouts: what it samples with `seed`, or without one, its greedy
    answers. The likelihood is that of the expert's turn under the student's prompt.

    Args:
        student, teacher: whose weights play which role.
        batch: encoded records; `plan` cuts them into passes.
        max_new_tokens: cap on an answer.
        max_decode_tokens, seed: as `decode`.
        prose: as `answers.score`.
        told: hears of each phase (answers, rollouts, likelihood) how many records it is through with.
    """
    pad = prompts.turn_end_id
    students, references = [e.student for e in batch], [e.reference for e in batch]
    decoding = (student, students, prompts, max_new_tokens, max_decode_tokens)
    answers = decode(*decoding, told=partial(told, "answers"))
    rollouts = answers
    if seed is not None:
        rollouts = decode(*decoding, seed, partial(told, "rollouts"), [e.record.record_id for e in batch])
    ids = [rollout.ids for rollout in rollouts]
    told("likelihood", 0)
    with student.weights(student.scoring):
        own, expert = _both_states(student.backend, students, ids, references, pad)
    with teacher.weights(teacher.scoring):
        scored = answer_states(teacher.backend, [e.teacher for e in batch], ids, pad)
    kl = _reverse_kl(own, scored, student.backend.head).split([len(i) for i in ids])
    likelihoods = log_likelihood(expert, student.backend, references)
    told("likelihood", len(batch))
    return [
        _item(e, answer_text(answer, prompts), rollout, float(k.sum()), -n, prompts, prose)
        for e, answer, rollout, k, n in zip(batch, answers, rollouts, kl, likelihoods, strict=True)
    ]


def _both_states(
    backend: Backend, prompts: Sequence[list[int]], answers: Sequence[list[int]], others: Sequence[list[int]], pad: int
) -> tuple[Tensor, Tensor]:
    """Return the states of two answers to each prompt; where a pass holds a common prefix once, of one pass.

    That pass is no longer than the teacher's, whose prompts hold the expert's turn as well: `plan` counts those.
    """
    if backend.sharing != "packed":
        return answer_states(backend, prompts, answers, pad), answer_states(backend, prompts, others, pad)
    both = answer_states(backend, [*prompts, *prompts], [*answers, *others], pad)
    count = sum(map(len, answers))
    return both[:count], both[count:]


def _reverse_kl(student: Tensor, teacher: Tensor, head: Head) -> Tensor:
    """KL(student||teacher) at every token, (N,), in nats."""
    ones = torch.ones(len(student), device=student.device)
    return distillation_loss(student, teacher, head, ones, DistillSettings()).per_token


def _item(
    encoded: Encoded,
    text: str,
    rollout: Rollout,
    kl: float,
    nll: float,
    prompts: ChatPrompts,
    prose: Callable[[str, str], float] | None,
) -> Item:
    record = encoded.record
    return Item(
        record_id=record.record_id,
        session_id=record.row.session_id,
        group=group_of(record),
        kl=kl,
        rollout_tokens=len(rollout.ids),
        finished=rollout.finished,
        nll=nll,
        reference_tokens=len(encoded.reference),
        text=text,
        score=score(record, text, prose, prompts.syntax.syntax, prompts.scores_calls(record)),
    )
