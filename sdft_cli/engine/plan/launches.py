"""Kernels that a pass launches, counted by layer: what a small pass and a step of decoding take on a GPU.

A kernel that works on one token, or on few, runs for microseconds; Python and torch take longer to launch it. So the
number of kernels counts, not what they compute. These are the operations of transformers' and peft's passes that write
memory, one for each; tests compare them with those that torch dispatches.

| per layer                        | 16 bits, forward (backward) | fp32        |
| -------------------------------- | --------------------------- | ----------- |
| each norm                        | 8 (14)                      | 6 (12)      |
| each matrix                      | 1 (0)                       | 1 (0)       |
| each adapted matrix more         | 6 (11)                      | 4 (8)       |
| full attention and MLP otherwise | 20 (31), decoding 17        | the same    |
| its output gate                  | 12 (9)                      | the same    |
| gated DeltaNet, norms included   | 52 (69)                     | 38 (55)     |
| its rule, fused                  | 8 (10), one token 1         | the same    |
| its rule, transformers' reference| 45 + 12 per 64 tokens (twice that), one token 30 |  |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sdft_cli.engine.plan.memory import CHUNK
from sdft_cli.engine.plan.model_shape import LINEAR, Block, Shape

FORWARD_ONCE, DECODE_ONCE = 26, 86
"""Of a pass, and of a step of decoding with its sampling, outside the layers."""


@dataclass(frozen=True)
class Launches:
    """Kernels of the model itself, and those that the adapter adds."""

    own: float
    adapter: float = 0.0

    def __add__(self, other: Launches) -> Launches:
        return Launches(self.own + other.own, self.adapter + other.adapter)


def forward_launches(shape: Shape, tokens: float, size: int, adapter: bool, fused: bool) -> Launches:
    """Return the launches of a forward pass over the trunk; numbers have `size` bytes."""
    return _layers(shape, size, adapter, lambda b: _own(b, size, _rule(tokens, fused))) + Launches(FORWARD_ONCE)


def backward_launches(shape: Shape, tokens: float, size: int, fused: bool) -> Launches:
    """Return the launches of its backward pass."""
    rule = 10.0 if fused else 2 * _rule(tokens, fused)

    def own(block: Block) -> float:
        if block.kind == LINEAR:
            return (69 if size < 4 else 55) + rule
        norms = 2 + 2 * block.norms_heads
        return norms * (14 if size < 4 else 12) + 31 + 9 * block.gated

    per_matrix = 11 if size < 4 else 8
    found = [(own(b), per_matrix * len(b.adapted), b.count) for b in shape.blocks]
    return Launches(sum(o * n for o, _, n in found), sum(a * n for _, a, n in found))


def decode_launches(shape: Shape, size: int, adapter: bool, fused: bool) -> Launches:
    """Return the launches of one step of decoding, sampling included; the same for any number of sequences."""

    def own(block: Block) -> float:
        less = 0 if block.kind == LINEAR else 3
        return _own(block, size, 1.0 if fused else 30.0) - less + block.gated

    return _layers(shape, size, adapter, own) + Launches(DECODE_ONCE)


def _rule(tokens: float, fused: bool) -> float:
    return 8.0 if fused else 45 + 12 * tokens / CHUNK


def _own(block: Block, size: int, rule: float) -> float:
    if block.kind == LINEAR:
        return (52 if size < 4 else 38) + len(block.linears) + rule
    norms = 2 + 2 * block.norms_heads
    return norms * (8 if size < 4 else 6) + len(block.linears) + 20 + 12 * block.gated


def _layers(shape: Shape, size: int, adapter: bool, own: Callable[[Block], float]) -> Launches:
    per_matrix = (6 if size < 4 else 4) if adapter else 0
    parts = [(own(block), per_matrix * len(block.adapted), block.count) for block in shape.blocks]
    return Launches(sum(o * n for o, _, n in parts), sum(a * n for _, a, n in parts))
