"""Did it forget? What a model still does on general prompts that have nothing to do with its training.

Drift needs no labels: the base model answers each prompt greedily once, and every model is compared with it at the
tokens of those answers. Questions have one short answer each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.models.head import Head
from sdft_cli.engine.passes.executors import answer_states, plan_passes
from sdft_cli.engine.score.scoring import Role, answer_text, decode
from sdft_cli.prompts.chat import ChatPrompts
from sdft_cli.resources import resource_text

ROWS = 64
"""Rows of logits held at once."""
Told = Callable[[float], None]
BRIEFLY = "Answer with one word or number."


def _nobody(done: float) -> None:
    """Nobody is told."""


@dataclass(frozen=True)
class Drift:
    """One prompt: sums over the tokens of the base's answer.

    `kl`: forward KL(base||model), nats; `same_top`: tokens where both have the same likeliest word; `entropy`: of the
    model, nats; `token_kl`: the divergence at each token.
    """

    prompt_id: str
    kind: str
    tokens: int
    kl: float
    same_top: int
    entropy: float
    token_kl: list[float]


@dataclass(frozen=True)
class Reply:
    """A question's reply, and whether it is right."""

    question_id: str
    kind: str
    correct: bool
    text: str


@dataclass(frozen=True)
class BaseAnswers:
    """The base's answers to the general prompts, and its states (on the CPU) that predict their tokens."""

    prompts: list[dict[str, str]]
    prompt_ids: list[list[int]]
    answers: list[list[int]]
    states: list[Tensor]


def general_prompts(count: int) -> list[dict[str, str]]:
    """Return `count` of the project's general prompts, spread evenly over their kinds; all if there are no more."""
    return _spread("general.jsonl", count)


def questions(count: int) -> list[dict[str, Any]]:
    """Return `count` of the project's questions, spread evenly over their kinds; all if there are no more."""
    return _spread("questions.jsonl", count)


def _spread(name: str, count: int) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in resource_text("templates", "eval", name).splitlines()]
    of_kind: dict[str, int] = {}
    places = []
    for line in lines:
        places.append(of_kind.setdefault(line["kind"], 0))
        of_kind[line["kind"]] += 1
    first = sorted(range(len(lines)), key=lambda i: (places[i], i))[:count]
    return [lines[i] for i in sorted(first)]


def _passes(backend: Backend, rows: Sequence[Sequence[int]], max_tokens: int, max_items: int) -> list[list[int]]:
    return plan_passes(backend, [list(row) for row in rows], max_tokens, max_items)


def _greedy(
    role: Role, rows: Sequence[list[int]], prompts: ChatPrompts, new_tokens: int, caps: tuple[int, int], told: Told
) -> list[tuple[list[int], str]]:
    """Return (ids, text) of the greedy answer to each prompt."""
    found: dict[int, tuple[list[int], str]] = {}
    for some in _passes(role.backend, [[*row, *[0] * new_tokens] for row in rows], *caps):
        behind = partial(_behind, told, len(found))
        answers = decode(role, [rows[i] for i in some], prompts, new_tokens, told=behind)
        for i, answer in zip(some, answers, strict=True):
            found[i] = (answer.ids, answer_text(answer, prompts))
    return [found[i] for i in range(len(rows))]


def _behind(told: Told, before: int, done: float) -> None:
    told(before + done)


def _states(
    role: Role,
    prompt_ids: Sequence[list[int]],
    answers: Sequence[list[int]],
    pad_id: int,
    caps: tuple[int, int],
    told: Told = _nobody,
) -> list[Tensor]:
    """Return the states (|y|, H) that predict each answer, on the CPU."""
    rows = [[*x, *y] for x, y in zip(prompt_ids, answers, strict=True)]
    found: dict[int, Tensor] = {}
    with role.weights(role.scoring):
        for some in _passes(role.backend, rows, *caps):
            states = answer_states(role.backend, [prompt_ids[i] for i in some], [answers[i] for i in some], pad_id)
            parts = states.cpu().split([len(answers[i]) for i in some])
            found.update(zip(some, parts, strict=True))
            told(len(found))
    return [found[i] for i in range(len(rows))]


def base_answers(
    base: Role,
    prompts: ChatPrompts,
    chosen: Sequence[dict[str, str]],
    new_tokens: int,
    caps: tuple[int, int],
    told: Told = _nobody,
) -> BaseAnswers:
    """Let the base answer the general prompts greedily, once for all models.

    Args:
        new_tokens: cap on an answer.
        caps: most tokens and prompts of a pass.
        told: hears how many prompts are answered.
    """
    prompt_ids = [prompts.question_ids(line["prompt"]) for line in chosen]
    answers = [ids for ids, _ in _greedy(base, prompt_ids, prompts, new_tokens, caps, told)]
    states = _states(base, prompt_ids, answers, prompts.turn_end_id, caps)
    return BaseAnswers(list(chosen), prompt_ids, answers, states)


@torch.no_grad()
def drift(
    model: Role, base: BaseAnswers, head: Head, pad_id: int, caps: tuple[int, int], told: Told = _nobody
) -> list[Drift]:
    """Compare a model with the base at the tokens of the base's answers.

    Args:
        head: the base's output head.
        caps, told: as `base_answers`.
    """
    states = _states(model, base.prompt_ids, base.answers, pad_id, caps, told)
    found = []
    for line, answer, own, theirs in zip(base.prompts, base.answers, states, base.states, strict=True):
        kl, same, entropy = _compare(own, theirs, model.backend.head, head)
        sums = float(kl.sum()), int(same.sum()), float(entropy.sum())
        found.append(Drift(line["id"], line["kind"], len(answer), *sums, kl.tolist()))
    return found


def _compare(own: Tensor, base: Tensor, own_head: Head, base_head: Head) -> tuple[Tensor, Tensor, Tensor]:
    """Return KL(base||model), equality of the likeliest words, and the model's entropy, at every row: (N,) each."""
    parts = []
    for o, b in zip(own.split(ROWS), base.split(ROWS), strict=True):
        q = own_head.logits(o.to(own_head.weight)).log_softmax(-1)
        p = base_head.logits(b.to(base_head.weight)).log_softmax(-1)
        kl = (p.exp() * (p - q)).sum(-1)
        parts.append((kl, p.argmax(-1) == q.argmax(-1), -(q.exp() * q).sum(-1)))
    kl, same, entropy = (torch.cat(column) for column in zip(*parts, strict=True))
    return kl, same, entropy


def ask(
    model: Role,
    prompts: ChatPrompts,
    asked: Sequence[dict[str, Any]],
    new_tokens: int,
    caps: tuple[int, int],
    told: Told = _nobody,
) -> list[Reply]:
    """Ask a model questions; it answers greedily."""
    rows = [prompts.question_ids(f"{line['question']} {BRIEFLY}") for line in asked]
    found = _greedy(model, rows, prompts, new_tokens, caps, told)
    return [
        Reply(line["id"], line["kind"], is_correct(text, line["answers"]), text)
        for line, (_, text) in zip(asked, found, strict=True)
    ]


def is_correct(reply: str, answers: Sequence[str]) -> bool:
    """Say whether the first line of a reply holds one of the accepted answers as whole words.

    Case does not matter, nor do marks around words. A number is not part of another one: 8 is not in 8.5 or 1,800.
    """
    first = next((line for line in reply.splitlines() if line.strip()), "")
    return any(
        re.search(rf"(?<![\w-])(?<!\d[.,:]){re.escape(a)}(?![\w-]|[.,:]\d)", first, re.IGNORECASE) for a in answers
    )
