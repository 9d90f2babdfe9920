"""Products of a few rows with weights in the order in which a processor reads them, for decoding on a CPU in fp32.

A step of decoding multiplies one row for each answer with every weight, so reading weights is all it does. A plain
product of 8 rows reads them more slowly than memory gives; MKL's own order for packed matrices comes closer, and
oneDNN's where torch has no MKL. Making it takes as long as a few steps. The sums are those of fp32, in another order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdft_cli.engine.kernels.halves import Halves
from sdft_cli.engine.kernels.joint import Product

MOST_ROWS = 32
"""Products of more rows are as fast with plain weights."""


def packs() -> bool:
    """Say whether this torch has packed products."""
    return _by_mkl() or _by_onednn()


def _by_mkl() -> bool:
    return torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")


def _by_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def packed_product(weight: Tensor, rows: int, bias: Tensor | None = None) -> Product:
    """Return x -> x W^T + b for x (..., K) of `rows` rows, without gradient; `weight` (N, K) fp32 is copied."""
    weight = weight.detach()
    if _by_mkl():
        mkl = torch.ops.mkl
        return partial(_mkl_product, mkl._mkl_linear, mkl._mkl_reorder_linear_weight(weight, rows), weight, bias, rows)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")  # type: ignore[no-any-return]


def _mkl_product(product: Any, packed: Tensor, weight: Tensor, bias: Tensor | None, rows: int, x: Tensor) -> Tensor:
    found: Tensor = product(x, packed, weight, bias, rows)
    return found


def packable(model: nn.Module) -> list[nn.Linear]:
    """Return the linear layers of a model that can be packed: plain ones, in fp32, on a CPU."""
    return [
        module
        for module in model.modules()
        if type(module) is nn.Linear
        and "forward" not in vars(module)
        and module.weight.dtype == torch.float32
        and module.weight.device.type == "cpu"
    ]


@contextmanager
def packed_products(
    model: nn.Module, rows: int, halves: Halves | None = None, left_alone: Collection[nn.Module] = ()
) -> Iterator[None]:
    """Linear layers of a model multiply inputs of `rows` rows with packed weights, which are as they are now.

    Other inputs, and any with a gradient, have the plain product.

    Args:
        model: its layers that are `packable` take part.
        rows: of the inputs.
        halves: weights that are packed already, in float16.
        left_alone: layers that take no part.
    """
    layers = [layer for layer in packable(model) if layer not in left_alone]
    try:
        for layer in layers:
            product = _product_of(layer, rows, halves)
            layer.forward = partial(_forward, layer, product, rows)  # type: ignore[method-assign]
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _product_of(layer: nn.Linear, rows: int, halves: Halves | None) -> Product:
    bias = None if layer.bias is None else layer.bias.detach()
    half = halves.product(layer.weight) if halves else None
    if half is None:
        return packed_product(layer.weight, rows, bias)
    return half if bias is None else lambda x: half(x).add_(bias)


def _forward(layer: nn.Linear, product: Product, rows: int, x: Tensor) -> Tensor:
    if x.numel() == rows * x.shape[-1] and not torch.is_grad_enabled():
        return product(x)
    return functional.linear(x, layer.weight, layer.bias)
