"""The operations that the passes of a step really take, counted from its token ids; `plan.py` predicts, this counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from sdft_cli.config import TrainConfig
from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.passes.attention import PATH_BLOCK
from sdft_cli.engine.passes.depth_first_order import Enter, Leave, Span, Tail, walk
from sdft_cli.engine.passes.executors import PREFILL_TOKENS, plan_passes
from sdft_cli.engine.passes.packed import build_tree
from sdft_cli.engine.passes.padded import Sequences
from sdft_cli.engine.plan.flops import attended, backward_flops, causal_pairs, decode_flops, forward_flops, head_flops
from sdft_cli.engine.plan.memory import padded
from sdft_cli.engine.plan.model_shape import Shape


@dataclass(frozen=True)
class Work:
    """Tokens that forward and backward passes run over, and the pairs (token, token attended to) that they compute."""

    forward_tokens: float = 0
    forward_pairs: float = 0
    backward_tokens: float = 0
    backward_pairs: float = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def _sum(parts: Iterable[Work]) -> Work:
    return sum(parts, Work())


def _pass(tokens: float, pairs: float, gradient: bool, checkpointing: bool) -> Work:
    again = 1 + (gradient and checkpointing)
    return Work(again * tokens, again * pairs, gradient * tokens, gradient * pairs)


def _padded(lengths: Sequence[int]) -> tuple[float, float]:
    forward = padded(lengths)
    return forward.tokens, attended(forward)


def _packed(rows: Sequences, gradient: bool, checkpointing: bool) -> Work:
    """A packed pass; going back through its branches computes their attention again."""
    tree = build_tree(rows)
    if len(tree.branches) == 1:
        return _pass(len(tree), causal_pairs([len(tree)]), gradient, checkpointing)
    pairs = sum(_pairs((len(b.path), len(b.path) + b.stop - b.start)) for b in tree.branches)
    return _pass(len(tree), pairs, gradient, checkpointing) + Work(forward_pairs=gradient * pairs)


def _pairs(span: Span) -> float:
    """Pairs of the tokens of a span: behind a path every query of a block computes all keys up to the block's last."""
    start, stop = span
    cuts = [*range(start, stop, PATH_BLOCK), stop]
    return sum((b - a) * b for a, b in pairwise(cuts)) if start else causal_pairs([stop])


def _span(span: Span, gradient: bool = False) -> Work:
    start, stop = span
    pairs = _pairs(span)
    return Work(stop - start, pairs, gradient * (stop - start), gradient * pairs)


def _walked(rows: Sequences, shareable: Sequence[int], segment: int, gradient: bool) -> Work:
    """Shared segments, and all but the last span of a tail, run again with gradient when the walk comes back."""
    parts: list[Work] = []
    for event in walk(rows, shareable, segment):
        if isinstance(event, Enter):
            parts += [_span(event.span)] + ([_span(event.span, True)] if gradient else [])
        elif isinstance(event, Tail):
            *early, last = event.spans
            parts += [_span(span) for span in early] + [_span(last, gradient)]
            parts += [_span(span, True) for span in early] if gradient else []
        else:
            assert isinstance(event, Leave)
    return _sum(parts)


def passes_work(backend: Backend, prompts: Sequences, answers: Sequences, config: TrainConfig, gradient: bool) -> Work:
    """Count `executors.teacher_passes`, or with `gradient` `executors.student_passes`, over these turns."""
    used = [i for i, answer in enumerate(answers) if answer]
    rows = [[*prompts[i], *answers[i]] for i in used]
    if not rows:
        return Work()
    if backend.sharing == "depth_first":
        shortened = [[*prompts[i], *answers[i][: max(1, len(answers[i]) - 1)]] for i in used]
        return _walked(shortened, [len(prompts[i]) - 1 for i in used], backend.segment_tokens, gradient)
    groups = plan_passes(backend, rows, config.optim.max_tokens_per_pass)
    checkpointing = config.gradient_checkpointing
    if backend.sharing == "packed":
        return _sum(_packed([rows[i] for i in group], gradient, checkpointing) for group in groups)
    return _sum(_pass(*_padded([len(rows[i]) for i in group]), gradient, checkpointing) for group in groups)


def prefill_work(backend: Backend, prompts: Sequences) -> Work:
    """Count the prefill of rollouts: all but the last token of each prompt, common prefixes once where they are."""
    rows = [list(prompt[:-1]) for prompt in prompts if len(prompt) > 1]
    if backend.sharing == "depth_first":
        return _walked(rows, [max(0, len(row) - 2) for row in rows], backend.segment_tokens, False)
    if backend.sharing == "packed":
        groups = plan_passes(backend, rows, PREFILL_TOKENS)
        return _sum(_packed([rows[i] for i in group], False, False) for group in groups)
    return _sum(_pass(len(row), causal_pairs([len(row)]), False, False) for row in rows)


def step_operations(
    backend: Backend,
    shape: Shape,
    config: TrainConfig,
    students: Sequences,
    teachers: Sequences,
    answers: Sequences,
    sampled: Sequence[bool],
    merged: bool,
) -> dict[str, float]:
    """Return the floating-point operations of a step by phase, as `Phases` names them.

    Args:
        backend: with the sharing that the step ran with.
        students, teachers, answers: token ids of each turn.
        sampled: was the answer a rollout? Rows of a decoding batch that ended early are not counted.
        merged: were rollouts sampled from merged weights?
    """
    student = passes_work(backend, students, answers, config, gradient=True)
    forward = forward_flops(shape, student.forward_tokens, student.forward_pairs, adapter=True)
    backward = backward_flops(shape, student.backward_tokens, student.backward_pairs)
    rows = sum(map(len, answers))
    operations = {"student": forward, "backward": backward, "loss": 2 * head_flops(shape, rows)}
    if config.objective == "sdft":
        operations["loss"] += head_flops(shape, rows)
        teacher = passes_work(backend, teachers, answers, config, gradient=False)
        adapter = config.teacher.wears_adapter
        operations["teacher"] = forward_flops(shape, teacher.forward_tokens, teacher.forward_pairs, adapter)
    own = [i for i, flag in enumerate(sampled) if flag]
    if own:
        prefill = prefill_work(backend, [students[i] for i in own])
        decoded = sum(decode_flops(shape, len(students[i]), len(answers[i]), not merged) for i in own)
        operations["rollout"] = (
            forward_flops(shape, prefill.forward_tokens, prefill.forward_pairs, not merged) + decoded
        )
    return operations
