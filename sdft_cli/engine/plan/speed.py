"""Seconds of passes and of decoding on a card, in closed form; the constants are fitted to one H100 (docs/gpu.md).

A pass takes what the card needs for it, or what the launches of its kernels take, whichever is more. The card needs,
one after the other: matrix products at `utilisation` of its peak; attention at `ATTENTION`; and everything else as so
many bytes through its memory at `BANDWIDTH` of what it can: norms, rotary positions, the MLP's activation, the gated
delta rule, and most of the adapter, whose products are narrow.

A step of decoding reads all weights and the caches of its sequences. Without CUDA graphs it takes that or the launches
of its kernels, whichever is more; as a graph that plus `NODE` per kernel, which nobody measured here yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from sdft_cli.config import TrainConfig
from sdft_cli.engine.plan.cards import Gpu
from sdft_cli.engine.plan.flops import attention_flops, head_flops
from sdft_cli.engine.plan.launches import Launches, backward_launches, decode_launches, forward_launches
from sdft_cli.engine.plan.memory import Lengths, rollout_passes, weight_bytes
from sdft_cli.engine.plan.model_shape import BYTES, LINEAR, Block, Shape
from sdft_cli.engine.plan.passes import Pass

UTILISATION = 0.75
"""Share of the data sheet's arithmetic that large products of 16-bit matrices reach."""
ATTENTION, ATTENTION_BACK = 0.3, 0.25
"""The same of flash attention at a head size of 256."""
BANDWIDTH = 0.8
"""Share of the memory's bandwidth that passes reach."""
RULE_BYTES = 300.0
"""Per token and value feature of a layer: what the fused gated delta rule takes, as traffic; twice that backward."""
REFERENCE = 10.0
"""How many times longer transformers' reference of it takes."""
FP32 = 40e12
"""Operations per second of the adapter's products without autocast: true fp32."""
LAUNCH, PASS_LAUNCH, ADAPTER_LAUNCH = 35e-6, 65e-6, 4.3e-6
"""Seconds per kernel: of a step of decoding, of a pass (which keeps a graph and a live path), and of the adapter."""
NODE = 1.5e-6
"""Seconds per kernel of a replayed CUDA graph."""


@dataclass(frozen=True)
class Engine:
    """How a run would be computed: kernels, decoding, and which arithmetic the adapter has.

    `fused`: the gated delta rule has fused kernels. `graphs`: decoding steps are replayed as CUDA graphs. `merged`:
    rollouts are sampled from merged weights. `autocast`: the adapter's products are in 16 bits.
    """

    fused: bool = True
    graphs: bool = False
    merged: bool = False
    autocast: bool = True


@dataclass(frozen=True)
class Speed:
    """Seconds of a model's work on a card."""

    shape: Shape
    config: TrainConfig
    card: Gpu
    engine: Engine
    utilisation: float = UTILISATION

    @property
    def size(self) -> int:
        return BYTES[self.config.dtype]

    def _products(self, operations: float, share: float) -> float:
        assert self.card.tflops is not None
        return operations / (share * self.card.tflops * 1e12)

    def _traffic(self, count: float, share: float = BANDWIDTH) -> float:
        assert self.card.gb_per_s is not None
        return count / (share * self.card.gb_per_s * 1e9)

    def pass_seconds(self, one: Pass) -> float:
        """Return what a pass takes: the card's work, or its launches."""
        shape, fused, back = self.shape, self.engine.fused, one.back
        operations = attention_flops(shape, one.pairs) * (2.5 if back else 1)
        work = self._products(2 * one.tokens * shape.matrix_parameters, self.utilisation)
        work += self._products(operations, ATTENTION_BACK if back else ATTENTION)
        work += self._traffic(one.tokens * (1 + back) * self._token_bytes)
        if one.adapter:
            work += self._adapter_seconds(one.tokens, back)
        if back:
            launches = backward_launches(shape, one.tokens, self.size, fused)
            return max(work, PASS_LAUNCH * (launches.own + launches.adapter))
        found = forward_launches(shape, one.tokens, self.size, one.adapter, fused)
        return max(work, host_seconds(found, PASS_LAUNCH))

    @cached_property
    def _token_bytes(self) -> float:
        return _plain_bytes(self.shape) + self._rule_bytes()

    @cached_property
    def _widths(self) -> tuple[int, int]:
        """Of the inputs of all adapted matrices together, and of their outputs."""
        blocks = self.shape.blocks
        return sum(b.count * _width(b, 0) for b in blocks), sum(b.count * _width(b, 1) for b in blocks)

    def _rule_bytes(self) -> float:
        net = self.shape.delta_net
        if net is None:
            return 0.0
        each = net.value_heads * net.value_dim * RULE_BYTES * (1 if self.engine.fused else REFERENCE)
        return each * self.shape.layers(LINEAR)

    def _adapter_seconds(self, tokens: float, back: bool) -> float:
        """Casts, sums and scales beside each adapted matrix, and two narrow products (backward: four)."""
        wide_in, wide_out = self._widths
        per_in, per_out = _ADAPTER_BYTES[self.engine.autocast or self.size == 4, back]
        operations = (4 if back else 2) * tokens * self.shape.adapter_parameters
        products = self._products(operations, self.utilisation) if self.engine.autocast else operations / FP32
        return self._traffic(tokens * (per_in * wide_in + per_out * wide_out)) + products

    def head_seconds(self, rows: float) -> float:
        """Return the loss at so many tokens: three products with the head, and some twenty walks over fp32 logits."""
        walks = self._traffic(80.0 * rows * self.shape.vocabulary)
        return self._products(3 * head_flops(self.shape, rows), self.utilisation) + walks

    def decode_launches(self) -> Launches:
        """Return the launches of one step of decoding."""
        return decode_launches(self.shape, self.size, not self.engine.merged, self.engine.fused)

    def decode_seconds(self, read: float, steps: float) -> float:
        """Return what `steps` steps take that read so many bytes together."""
        launches = self.decode_launches()
        if self.engine.graphs:
            return self._traffic(read, 1.0) + steps * NODE * (launches.own + launches.adapter)
        return max(self._traffic(read, 1.0), steps * host_seconds(launches, LAUNCH))

    def decode_bytes(self, step: Sequence[Lengths]) -> tuple[float, float]:
        """Return the bytes that decoding a step reads, and its steps: sequences that go together share a step.

        All weights, once; each sequence's keys and values (in a graph all that there is room for) and its states.
        """
        shape, cap = self.shape, self.config.rollout.max_new_tokens
        weights = weight_bytes(shape, self.config) + (0 if self.engine.merged else 4 * shape.adapter_parameters)
        total = steps = 0.0
        for rows in rollout_passes(step, self.config):
            some = [step[i] for i in rows]
            new = max(x.rollout for x in some)
            seen = sum(x.student + x.rollout / 2 for x in some)
            if self.engine.graphs:
                seen = len(some) * (max(x.student for x in some) + cap)
            cached = seen * shape.kv_bytes(self.size) + len(some) * 2 * shape.state_bytes(self.size)
            total, steps = total + new * (weights + cached), steps + new
        return total, steps


_ADAPTER_BYTES = {
    (False, False): (10.0, 28.0),  # input to fp32 and read; fp32 output, scaled, added, and cast back
    (False, True): (16.0, 22.0),
    (True, False): (2.0, 12.0),
    (True, True): (10.0, 8.0),
}
"""(autocast, backward) -> bytes per input and per output of an adapted matrix and token."""


def host_seconds(launches: Launches, each: float) -> float:
    """Return what launching kernels takes; the adapter's are simple ones."""
    return launches.own * each + launches.adapter * ADAPTER_LAUNCH


def _width(block: Block, side: int) -> int:
    return sum(sizes[side] for name, sizes in block.linears.items() if name in block.adapted)


def _plain_bytes(shape: Shape) -> float:
    """Bytes per token of a forward pass beside its products: norms and sums, the MLP's activation, mixers otherwise."""
    total = 0.0
    for block in shape.blocks:
        linear = block.kind == LINEAR and shape.delta_net is not None
        mixed = shape.delta_net.features if linear and shape.delta_net else 2 * shape.heads * shape.head_dim
        total += block.count * (92 * shape.hidden + 10 * block.linears["down_proj"][0] + 30 * mixed)
    return total


def work_seconds(speed: Speed, passes: Sequence[Pass]) -> dict[str, float]:
    """Return the seconds of passes by phase."""
    found: dict[str, float] = {}
    for one in passes:
        found[one.phase] = found.get(one.phase, 0.0) + speed.pass_seconds(one)
    return found
