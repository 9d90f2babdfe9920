"""One product for several layers that read the same tensor, as query, key and value of an attention do.

A step of decoding on a CPU waits for its threads at every product: one of 960 columns is faster than three of 576, 192
and 192, and its columns are theirs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Product = Callable[[Tensor], Tensor]
Layer = TypeVar("Layer", bound=nn.Module)


class Joint:
    """x -> the columns of several layers: computed for the first of them that asks, kept for the others.

    Each layer's columns are handed out once, so a layer may write into what it gets, a view of the whole. Another
    tensor, the same one written to since, or a layer that asks again is a product of its own: the result is right
    whatever asks, and in whatever order.
    """

    def __init__(self, multiply: Product, widths: Sequence[int]) -> None:
        """Take the product (..., K) -> (..., sum of widths), and how many columns each layer has."""
        self._multiply, self._widths = multiply, list(widths)
        self._input: Tensor | None = None
        self._version: int | None = None
        self._left: dict[int, Tensor] = {}

    def part(self, index: int) -> Product:
        """Return the product of one layer."""
        return lambda x: self._take(index, x)

    def _take(self, index: int, x: Tensor) -> Tensor:
        version = None if x.is_inference() else x._version
        if x is not self._input or version != self._version or index not in self._left:
            self._input, self._version = x, version
            self._left = dict(enumerate(self._multiply(x).split(self._widths, -1)))
        found = self._left.pop(index)
        if not self._left:
            self._input = None
        return found


def reading_together(layers: Sequence[Layer], run: Callable[[], Any]) -> list[list[Layer]]:
    """Return groups of two or more of these layers that a pass, `run`, gives the very same tensor; each is in one.

    A layer that the pass does not run exactly once, or not with its input as the first argument, is in none.
    """
    given: list[tuple[Layer, Tensor]] = []

    def note(layer: Layer, inputs: tuple[Any, ...]) -> None:
        given.extend((layer, x) for x in inputs[:1])

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    times = Counter(layer for layer, _ in given)
    groups: dict[int, list[Layer]] = {}
    for layer, x in given:  # all inputs are held, so that no two have one id
        if times[layer] == 1:
            groups.setdefault(id(x), []).append(layer)
    return [group for group in groups.values() if len(group) > 1]
