"""Where an objective would move the student, before any step: towards the expert's turns, or elsewhere?

    alignment = <g, e> / (|g| |e|)

g is the gradient of the distillation loss on the student's own rollouts, for a wording of the teacher's prompt and a
divergence; e the gradient of -log p of the expert's turns, per token; both in the parameters of a fresh adapter. At 1 a
small step of plain gradient descent lowers the expert's likelihood loss as fast as a step of that length of supervised
fine-tuning would; at 0 or below it does not lower it at all. It looks at first steps only: the order of results
of five wordings it foretold badly (docs/learning.md), so it orders the divergences of one wording, and no wordings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdft_cli.config import DistillSettings
from sdft_cli.engine.models.adapters import weights
from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.objective.formula import token_weights
from sdft_cli.engine.objective.loss import cross_entropy_loss, distillation_loss
from sdft_cli.engine.objective.weights import Answers
from sdft_cli.engine.passes.decode import Rollout
from sdft_cli.engine.passes.executors import student_passes, teacher_passes
from sdft_cli.engine.score.scoring import Encoded, group_of
from sdft_cli.errors import UsageError

Progress = Callable[[str, int, int], None]
Pair = tuple[str, str]
"""A wording and an objective, by name."""


@dataclass(frozen=True)
class Alignment:
    """`value`: the cosine. `parts`: what each group of sessions adds to it; they sum up to it."""

    value: float
    parts: dict[str, float]


def alignments(
    backend: Backend,
    encoded: Mapping[str, Sequence[Encoded]],
    rollouts: Sequence[Rollout],
    objectives: Mapping[str, DistillSettings],
    pad_id: int,
    max_tokens: int,
    progress: Progress = lambda what, done, total: None,
) -> dict[Pair, Alignment]:
    """Return the alignment of each wording with each objective. No gradient stays behind.

    Args:
        backend: with a fresh adapter, which is on for the student and off for the teacher. It runs turns padded or
            packed: a depth-first walk goes backwards by itself, and once.
        encoded: name of a wording -> the records, the same ones in the same order under each.
        rollouts: the student's answers to them.
        objectives: name -> settings of the loss; all have the same token weights, and differ in the divergence.
        pad_id: fills rows; masked.
        max_tokens: of a pass.
        progress: told of each part of the work, and how many wordings or records of it are done.

    Raises:
        ValueError: turns are run depth-first.
        UsageError: no rollout has a token with loss.
    """
    if backend.sharing == "depth_first":
        raise ValueError("alignments takes turns padded or packed")
    rows = next(iter(encoded.values()))
    shares = token_weights(rollouts, next(iter(objectives.values())))
    answers = [rollout.ids[: len(share)] for rollout, share in zip(rollouts, shares, strict=True)]
    if not any(map(any, shares)):
        raise UsageError(
            "No answer of the student has a token with loss: raise gate.max_new_tokens, or set "
            "distill.truncated_rollouts to keep."
        )
    teacher: dict[str, list[Tensor]] = {}
    with weights(backend.model, "base"):
        for name, found in encoded.items():
            progress("Asking the teachers", len(teacher), len(encoded))
            teacher[name] = teacher_passes(backend, [e.teacher for e in found], answers, pad_id, max_tokens)
    expert = _expert_gradient(backend, rows, pad_id, max_tokens, progress)
    totals = {(name, key): _zeros(backend) for name in encoded for key in objectives}
    products: dict[Pair, dict[str, float]] = {pair: {} for pair in totals}
    done = 0
    for group, turns, states in _passes_of_groups(backend, rows, answers, pad_id, max_tokens):
        progress("Comparing gradients", done, len(rows))
        done += len(turns)
        targets = torch.tensor([token for i in turns for token in answers[i]], device=states.device)
        w = torch.tensor([x for i in turns for x in shares[i]], device=states.device)
        chosen = Answers(targets, [len(answers[i]) for i in turns], [True] * len(turns))
        for (name, key), total in totals.items():
            q = torch.cat([teacher[name][i] for i in turns])
            loss = distillation_loss(states, q, backend.head, w, objectives[key], chosen).loss
            gradient = _gradient(backend, loss)
            _add(total, gradient)
            products[name, key][group] = products[name, key].get(group, 0.0) + _dot(gradient, expert)
    progress("Comparing gradients", done, len(rows))
    size = _dot(expert, expert) ** 0.5
    return {pair: _alignment(parts, size * _dot(totals[pair], totals[pair]) ** 0.5) for pair, parts in products.items()}


def _alignment(products: Mapping[str, float], size: float) -> Alignment:
    """Divide inner products by the sizes of both gradients; a gradient of 0 points nowhere."""
    parts = {group: value / size if size else 0.0 for group, value in products.items()}
    return Alignment(math.fsum(parts.values()), parts)


def _expert_gradient(
    backend: Backend, rows: Sequence[Encoded], pad_id: int, max_tokens: int, progress: Progress
) -> list[Tensor]:
    """Return the gradient of -log p of the expert's turns, per token."""
    references = [e.reference for e in rows]
    total, count, done = _zeros(backend), sum(map(len, references)), 0
    for turns, states in student_passes(backend, [e.student for e in rows], references, pad_id, max_tokens):
        targets = torch.tensor([token for i in turns for token in references[i]], device=states.device)
        even = torch.full(targets.shape, 1 / count, device=states.device)
        progress("Gradient of the expert's turns", done, len(rows))
        done += len(turns)
        _add(total, _gradient(backend, cross_entropy_loss(states, backend.head, targets, even).loss))
    return total


def _passes_of_groups(
    backend: Backend, rows: Sequence[Encoded], answers: Sequence[Sequence[int]], pad_id: int, max_tokens: int
) -> Iterator[tuple[str, list[int], Tensor]]:
    """Yield some turns of one group of sessions, and the student's states at their answers, until each came once."""
    groups: dict[str, list[int]] = {}
    for i, e in enumerate(rows):
        groups.setdefault(group_of(e.record), []).append(i)
    for group, members in groups.items():
        prompts, chosen = [rows[i].student for i in members], [answers[i] for i in members]
        for turns, states in student_passes(backend, prompts, chosen, pad_id, max_tokens):
            yield group, [members[i] for i in turns], states


def _zeros(backend: Backend) -> list[Tensor]:
    return [torch.zeros_like(p) for p in backend.parameters()]


def _gradient(backend: Backend, loss: Tensor) -> list[Tensor | None]:
    """Return the gradient in the adapter; the graph stays, for the next objective."""
    found = torch.autograd.grad(loss, backend.parameters(), retain_graph=True, allow_unused=True)
    return list(found)


def _add(total: Sequence[Tensor], found: Sequence[Tensor | None]) -> None:
    for into, one in zip(total, found, strict=True):
        if one is not None:
            into.add_(one)


def _dot(a: Sequence[Tensor | None], b: Sequence[Tensor]) -> float:
    return math.fsum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True) if x is not None)
