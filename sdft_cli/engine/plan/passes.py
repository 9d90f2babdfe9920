"""The passes over the trunk that the trainer would make of a step, from the lengths of its records alone.

`work.py` counts those that ran, from their tokens. Here nothing is shared between records, since that takes their
tokens: with shared prefixes these are more passes than a step has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sdft_cli.config import TrainConfig
from sdft_cli.engine.models.backend import Sharing
from sdft_cli.engine.passes.depth_first_order import even_spans
from sdft_cli.engine.passes.padded import padded_passes
from sdft_cli.engine.plan.flops import StepFlops, attended, backward_flops, causal_pairs, forward_flops
from sdft_cli.engine.plan.memory import Lengths, padded
from sdft_cli.engine.plan.model_shape import Shape


@dataclass(frozen=True)
class Pass:
    """One pass: its phase, tokens with padding, pairs (token, token attended to); is the adapter on; is it backward?"""

    phase: str
    tokens: float
    pairs: float
    adapter: bool
    back: bool = False

    def flops(self, shape: Shape) -> float:
        """Return its floating-point operations, without the head."""
        if self.back:
            return backward_flops(shape, self.tokens, self.pairs)
        return forward_flops(shape, self.tokens, self.pairs, self.adapter)


def scoring(
    phase: str,
    lengths: Sequence[int],
    adapter: bool,
    sharing: Sharing,
    config: TrainConfig,
    known: Sequence[int] | None = None,
) -> Iterator[Pass]:
    """Yield passes without gradient over sequences of these lengths; `known`: tokens of each that were computed."""
    for tokens, pairs in _cut(lengths, sharing, config, known):
        yield Pass(phase, tokens, pairs, adapter)


def training(
    lengths: Sequence[int], sharing: Sharing, config: TrainConfig, known: Sequence[int] | None = None
) -> Iterator[Pass]:
    """Yield the student's passes: forward, what is run again, and backward; `known` as of `scoring`.

    Depth-first all segments of a sequence but its last one run again; elsewhere, with gradient checkpointing, all do.
    """
    before = known or [0] * len(lengths)
    rows = [([n], [k]) for n, k in zip(lengths, before, strict=True)]
    for row, own in rows if sharing == "depth_first" else [(lengths, before)]:
        cut = list(_cut(row, sharing, config, own))
        for i, (tokens, pairs) in enumerate(cut):
            again = i < len(cut) - 1 if sharing == "depth_first" else config.gradient_checkpointing
            yield Pass("student", tokens, pairs, True)
            if again:
                yield Pass("backward", tokens, pairs, True)
            yield Pass("backward", tokens, pairs, True, back=True)


def _cut(
    lengths: Sequence[int], sharing: Sharing, config: TrainConfig, known: Sequence[int] | None = None
) -> Iterator[tuple[float, float]]:
    """Yield tokens and pairs of each pass: segments of a sequence, or sequences together, or (packed) each alone."""
    before = known or [0] * len(lengths)
    if sharing == "depth_first":
        for length, own in zip(lengths, before, strict=True):
            for start, stop in even_spans(own, length, config.segment_tokens):
                yield stop - start, causal_pairs([stop]) - causal_pairs([start])
    elif sharing == "packed":
        for length, own in ((n, k) for n, k in zip(lengths, before, strict=True) if k < n):
            yield length - own, causal_pairs([length]) - causal_pairs([own])
    else:
        for rows in padded_passes(lengths, config.optim.max_tokens_per_pass):
            forward = padded([lengths[i] for i in rows])
            yield forward.tokens, attended(forward)


def step_passes(step: Sequence[Lengths], config: TrainConfig, sharing: Sharing, merged: bool) -> list[Pass]:
    """Return the passes of a step: prompts of rollouts, teacher, student; decoding and the head are no passes."""
    own_teacher = config.teacher.wears_adapter
    return [
        *scoring("prefill", [x.student for x in step], not merged, "packed" if sharing == "none" else sharing, config),
        *scoring("teacher", [x.teacher + x.rollout for x in step], own_teacher, sharing, config),
        *training([x.student + x.rollout for x in step], sharing, config),
    ]


def flops_of(passes: Sequence[Pass], shape: Shape) -> StepFlops:
    """Return the operations of passes by phase."""
    total: dict[str, float] = {}
    for one in passes:
        total[one.phase] = total.get(one.phase, 0.0) + one.flops(shape)
    return StepFlops(**total)
