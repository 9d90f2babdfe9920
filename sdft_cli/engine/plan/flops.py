"""Floating-point operations of a training step, in closed form: 2 per parameter and token, and attention's own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sdft_cli.engine.plan.memory import CHUNK, Forward
from sdft_cli.engine.plan.model_shape import FULL, LINEAR, SLIDING, Shape


@dataclass(frozen=True)
class StepFlops:
    """Operations of each phase; `decode` is the one that memory bandwidth, not arithmetic, bounds."""

    prefill: float = 0.0
    decode: float = 0.0
    teacher: float = 0.0
    student: float = 0.0
    backward: float = 0.0
    heads: float = 0.0
    """Head projections of student and teacher, and dKL/dh, at the tokens of the trajectories only."""

    @property
    def total(self) -> float:
        return self.prefill + self.decode + self.teacher + self.student + self.backward + self.heads

    def __add__(self, other: StepFlops) -> StepFlops:
        return StepFlops(*(getattr(self, f) + getattr(other, f) for f in self.__dataclass_fields__))


def causal_pairs(lengths: Iterable[int]) -> float:
    """Pairs (token, token that it sees) of causal sequences."""
    return sum(n * (n + 1) / 2 for n in lengths)


def attended(forward: Forward) -> float:
    """Pairs that a pass computes: a kernel without a mask skips the upper triangle, one with a mask computes all."""
    return forward.mask or causal_pairs([forward.tokens // forward.rows] * forward.rows)


def matrix_flops(shape: Shape, tokens: float, adapter: bool) -> float:
    """Matrices of the trunk, the recurrence of linear attention, and the adapter beside them."""
    total = 2.0 * tokens * (shape.matrix_parameters + (shape.adapter_parameters if adapter else 0))
    net = shape.delta_net
    if net is not None:
        # Chunked gated delta rule: chunk matrices, two triangular solves, reads and writes of the state.
        k, v, c = net.key_dim, net.value_dim, CHUNK
        per_head = 2 * (2 * c * k + c * v + 3 * k * v) + c * (k + v)
        total += tokens * shape.layers(LINEAR) * (net.value_heads * per_head + 2 * net.kernel * net.features)
    return total


def attention_flops(shape: Shape, pairs: float) -> float:
    """Queries with keys and weights with values: 4 operations per pair and head dimension."""
    return 4.0 * pairs * shape.heads * shape.head_dim * shape.layers(FULL, SLIDING)


def forward_flops(shape: Shape, tokens: float, pairs: float, adapter: bool) -> float:
    """A forward pass through the trunk, without the head.

    Args:
        tokens: of the pass, padding included.
        pairs: (token, token that it attends to) that are computed.
        adapter: is it on and not merged?
    """
    return matrix_flops(shape, tokens, adapter) + attention_flops(shape, pairs)


def backward_flops(shape: Shape, tokens: float, pairs: float) -> float:
    """Its backward pass under LoRA: dx of frozen matrices, dx and dW of the adapter, 5 products for attention's 2."""
    adapter = 4.0 * tokens * shape.adapter_parameters
    return matrix_flops(shape, tokens, adapter=False) + adapter + 2.5 * attention_flops(shape, pairs)


def head_flops(shape: Shape, rows: float) -> float:
    """One projection of `rows` hidden states onto the vocabulary."""
    return 2.0 * rows * shape.vocabulary * shape.hidden


def decode_flops(shape: Shape, prompt: float, new: float, adapter: bool) -> float:
    """Decoding `new` tokens after a prompt: every token sees all before it, and the head is applied to each."""
    pairs = new * prompt + new * (new + 1) / 2
    return matrix_flops(shape, new, adapter) + attention_flops(shape, pairs) + head_flops(shape, new)
