"""LoRA updates beside base weights in float16, in steps of decoding on a CPU: y = x W^T + (x A^T) (s B)^T.

peft computes the same in half a dozen small operations a layer, each of which costs as much as the update itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sdft_cli.engine.kernels.halves import Halves, Product
from sdft_cli.engine.kernels.packed import packable
from sdft_cli.engine.models.adapters import lora_layers


@contextmanager
def updates_beside(model: nn.Module, rows: int, halves: Halves | None) -> Iterator[set[nn.Module]]:
    """Adapted layers with a base weight in `halves` run inputs of `rows` rows this way, with the adapter as it is now.

    Only plain LoRA adapters that are on, one a layer, with fp32 factors, in eval mode; other inputs, any with a
    gradient, and other layers run as ever. Yields the linear layers inside of those that take part.
    """
    found = {} if halves is None else _with_updates(model, halves)
    try:
        for layer, (product, bias, a, b) in found.items():
            layer.forward = partial(_forward, layer, product, bias, a, b, rows)
        yield {inside for layer in found for inside in layer.modules()}
    finally:
        for layer in found:
            vars(layer).pop("forward", None)


def _with_updates(model: nn.Module, halves: Halves) -> dict[Any, tuple[Product, Tensor | None, Tensor, Tensor]]:
    """Return adapted layer -> its product, bias, A^T (K, r) and (s B)^T (r, N)."""
    found = {}
    for layer in lora_layers(model).values():
        base, factors = layer.get_base_layer(), _factors(layer)
        product = halves.product(base.weight) if factors and packable(base) else None
        if factors and product:
            bias = None if base.bias is None else base.bias.detach()
            found[layer] = (product, bias, *factors)
    return found


def _factors(layer: Any) -> tuple[Tensor, Tensor] | None:
    """Return A^T and (s B)^T of a layer's only active adapter; None: it is another kind of layer, or not plain LoRA."""
    from peft.tuners.lora import Linear

    if type(layer) is not Linear or "forward" in vars(layer):
        return None
    name, *others = layer.active_adapters
    if others or layer.disable_adapters or layer.merged or name not in layer.lora_A or layer.lora_variant.get(name):
        return None
    a, b = layer.lora_A[name], layer.lora_B[name]
    dropout = layer.lora_dropout[name]
    if dropout.training and not isinstance(dropout, nn.Identity):
        return None
    if len(packable(nn.ModuleList([a, b]))) < 2 or a.bias is not None or b.bias is not None:
        return None
    return a.weight.detach().T.contiguous(), (layer.scaling[name] * b.weight.detach()).T.contiguous()


def _forward(
    layer: Any,
    product: Product,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    rows: int,
    x: Tensor,
    *rest: Any,
    **more: Any,
) -> Tensor:
    if rest or more or x.numel() != rows * x.shape[-1] or torch.is_grad_enabled():
        found: Tensor = type(layer).forward(layer, x, *rest, **more)
        return found
    y = product(x)
    if bias is not None:
        y.add_(bias)
    y.view(rows, -1).addmm_(x.reshape(rows, -1) @ a, b)
    return y
