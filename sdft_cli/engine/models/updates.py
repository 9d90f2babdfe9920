"""LoRA updates beside base weights in float16, in steps of decoding on a CPU: y = x W^T + (x A^T) (s B)^T.

peft computes the same in half a dozen small operations a layer, each of which costs as much as the update itself.
Layers whose base weights are multiplied together (`joint.py`) share the product with their A, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sdft_cli.engine.kernels.halves import Half, Halves
from sdft_cli.engine.kernels.joint import Joint, Product
from sdft_cli.engine.kernels.packed import packable
from sdft_cli.engine.models.adapters import lora_layers


@contextmanager
def updates_beside(model: nn.Module, rows: int, halves: Halves | None) -> Iterator[set[nn.Module]]:
    """Adapted layers with a base weight in `halves` run inputs of `rows` rows this way, with the adapter as it is now.

    Only plain LoRA adapters that are on, one a layer, with fp32 factors, in eval mode; other inputs, any with a
    gradient, and other layers run as ever. Yields the linear layers inside of those that take part.
    """
    found = {} if halves is None else _with_updates(model, rows, halves)
    try:
        for layer, update in found.items():
            layer.forward = partial(_forward, layer, update, rows)
        yield {inside for layer in found for inside in layer.modules()}
    finally:
        for layer in found:
            vars(layer).pop("forward", None)


@dataclass(frozen=True)
class _Update:
    """Of an adapted layer: x -> x W^T, the bias of W, x -> x A^T, and (s B)^T (r, N)."""

    product: Product
    bias: Tensor | None
    down: Product
    up: Tensor


def _with_updates(model: nn.Module, rows: int, halves: Halves) -> dict[Any, _Update]:
    """Return the adapted layers that take part, those that share a product behind each other."""
    factors = {layer: _factors(layer) for layer in lora_layers(model).values()}
    together: dict[Any, list[tuple[Any, Half]]] = {}
    for layer, some in factors.items():
        base = layer.get_base_layer()
        half = halves.find(base.weight) if some and packable(base) else None
        if half:
            together.setdefault(half.joint or layer, []).append((layer, half))
    found = {}
    for members in together.values():
        downs, ups = zip(*(factors[layer] for layer, _ in members), strict=True)
        joint = Joint(partial(_down, torch.cat(downs, 1), rows), [down.shape[1] for down in downs])
        for index, ((layer, half), up) in enumerate(zip(members, ups, strict=True)):
            bias = layer.get_base_layer().bias
            found[layer] = _Update(half.product, None if bias is None else bias.detach(), joint.part(index), up)
    return found


def _down(a: Tensor, rows: int, x: Tensor) -> Tensor:
    return x.reshape(rows, -1) @ a


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


def _forward(layer: Any, update: _Update, rows: int, x: Tensor, *rest: Any, **more: Any) -> Tensor:
    if rest or more or x.numel() != rows * x.shape[-1] or torch.is_grad_enabled():
        found: Tensor = type(layer).forward(layer, x, *rest, **more)
        return found
    y = update.product(x)
    if update.bias is not None:
        y.add_(update.bias)
    y.view(rows, -1).addmm_(update.down(x), update.up)
    return y
