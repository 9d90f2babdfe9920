"""Frozen fp32 weights that float16 holds, read as float16 while a CPU decodes.

Reading weights is all that a step of decoding does (`packed.py`), and most checkpoints are stored in 16 bits: in fp32
half of what is read is zeros. FBGEMM multiplies fp32 rows with float16 weights, each widened as it is read, and adds in
fp32; so where float16 holds a weight the product is that of fp32, with its sums in another order. It holds what was
stored in float16, and what was stored in bfloat16 and is not beyond its range: bfloat16 has fewer digits.

The weights are packed once, since nothing changes a frozen base. A LoRA update stays beside them, in fp32.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdft_cli.engine.kernels.joint import Joint, Product

LARGEST = 65504.0
"""The largest number that float16 has."""
LOST = 1e-6
"""What a weight may lose, as a share of the largest one of its matrix: numbers near 0 have fewer digits in float16."""
AT_ONCE = 1 << 20
"""Weights that are compared at once, so that a copy of a large matrix is not made for it."""


def reads_halves() -> bool:
    """Say whether this torch multiplies fp32 rows with float16 weights on this processor."""
    return "fbgemm" in torch.backends.quantized.supported_engines and torch.backends.cpu.get_cpu_capability() in (
        "AVX2",
        "AVX512",
    )


def held_by_half(weight: Tensor) -> bool:
    """Say whether float16 holds each number of an fp32 matrix, up to `LOST`."""
    if not weight.numel():
        return True
    largest = float(weight.abs().max())
    if not largest <= LARGEST:
        return False
    parts = weight.detach().reshape(-1).split(AT_ONCE)
    return all(float((part.half().float() - part).abs().max()) <= LOST * largest for part in parts)


@dataclass(frozen=True)
class Half:
    """A weight (N, K) as it was packed, and x -> x W^T for x (..., K), without gradient. The packed one is a copy.

    `joint`: the product of several weights that this one's is part of, if there is one.
    """

    weight: Tensor
    product: Product
    joint: Joint | None = None

    def is_of(self, weight: Tensor) -> bool:
        """Is this weight the one that was packed, and not another that stands in its place for a while?"""
        return weight.data_ptr() == self.weight.data_ptr() and weight.shape == self.weight.shape


class Halves:
    """Packed float16 copies of frozen weights, found by the weight."""

    def __init__(self, found: Iterable[Half]) -> None:
        self._found = {half.weight.data_ptr(): half for half in found}

    def product(self, weight: Tensor) -> Product | None:
        """Return x -> x W^T of a weight that was packed; None of any other."""
        half = self.find(weight)
        return half.product if half else None

    def find(self, weight: Tensor) -> Half | None:
        """Return what was made of a weight that was packed; None of any other."""
        half = self._found.get(weight.data_ptr())
        return half if half and half.is_of(weight) else None


def pack_halves(weights: Iterable[Tensor], together: Iterable[Sequence[Tensor]] = ()) -> Halves | None:
    """Pack all of these fp32 matrices on a CPU; None if this torch cannot, or float16 does not hold one of them.

    Args:
        weights: (N, K) each.
        together: groups of two or more of them, of one K, that multiply the same inputs: they are packed as one. A
            group with a weight of one before it is left out.
    """
    matrices = {weight.data_ptr(): weight.detach() for weight in weights}
    if not reads_halves() or not all(map(held_by_half, matrices.values())):
        return None
    found = []
    for group in together:
        places = {weight.data_ptr() for weight in group}
        if len(places) < len(group) or not places <= matrices.keys():
            continue
        members = [matrices.pop(weight.data_ptr()) for weight in group]
        joint = Joint(_packed(torch.cat(members)), [len(weight) for weight in members])
        found += [Half(weight, joint.part(i), joint) for i, weight in enumerate(members)]
    return Halves([*found, *(Half(weight, _packed(weight)) for weight in matrices.values())])


def _packed(weight: Tensor) -> Product:
    packed = torch.ops.quantized.linear_prepack_fp16(weight.contiguous(), None)
    multiply = torch.ops.quantized.linear_dynamic_fp16
    return lambda x: multiply(x, packed)  # type: ignore[no-any-return]
