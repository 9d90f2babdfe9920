"""Operations that write memory, counted as torch dispatches them: the kernels that a GPU would launch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

NO_KERNELS = frozenset(
    {
        "view",
        "_unsafe_view",
        "t",
        "transpose",
        "permute",
        "expand",
        "unsqueeze",
        "squeeze",
        "slice",
        "select",
        "split",
        "split_with_sizes",
        "detach",
        "alias",
        "as_strided",
        "reshape",
        "unbind",
        "diagonal",
        "lift_fresh",
        "_reshape_alias",
        "chunk",
        "empty",
        "empty_like",
        "new_empty",
        "empty_strided",
        "_local_scalar_dense",
        "item",
        "is_nonzero",
    }
)


class Launches(TorchDispatchMode):
    """Counts while it is entered; `paused`: what goes on inside a fused kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not self.paused and name not in NO_KERNELS:
            self.names[name] += 1
        return func(*args, **(kwargs or {}))

    def of(self, run: Callable[[], object]) -> int:
        """Return how many operations a call dispatches."""
        self.names.clear()
        with self:
            run()
        return self.names.total()


class Rule(torch.autograd.Function):
    """Stands for a fused gated delta rule: the right shapes, counted as so many kernels."""

    counter: Launches
    kernels: tuple[int, int]

    @staticmethod
    def forward(ctx: Any, *inputs: torch.Tensor) -> Any:
        Rule.counter.names["rule"] += Rule.kernels[0]
        Rule.counter.paused = True
        ctx.save_for_backward(*inputs)
        found = inputs[2] * 1, inputs[5] * 1
        Rule.counter.paused = False
        return found

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> Any:
        Rule.counter.names["rule, backward"] += Rule.kernels[1]
        Rule.counter.paused = True
        found = tuple(torch.zeros_like(x) for x in ctx.saved_tensors)
        Rule.counter.paused = False
        return found


def fused(counter: Launches, kernels: tuple[int, int]) -> Callable[..., Any]:
    """Return what a model can call in the place of the rule, counted as forward and backward kernels."""

    def rule(query: Any, key: Any, value: Any, g: Any, beta: Any, initial_state: Any = None, **_: Any) -> Any:
        before = initial_state
        if before is None:
            before = value.new_zeros((len(value), value.shape[2], key.shape[3], value.shape[3]), dtype=torch.float32)
        Rule.counter, Rule.kernels = counter, kernels
        return Rule.apply(query, key, value, g, beta, before)

    return rule
