"""A kernel against transformers' reference on made-up inputs: values, and the gradients of all inputs.

A check that compares two ways through a model cannot see a wrong kernel, since both ways call it. So it is compared
with code that does not: the reference in fp32. What counts as rounding is measured too: it is the distance of the
reference in bf16 from the reference in fp32, of the quantity that rounds most. A kernel may be `FACTOR` times as far;
fla's is 1.5 times as far on an H100 (0.0055 for 0.0037, docs/gpu.md), where kernels that Triton compiled wrongly are
off by 0.02 to 0.7 (flash-linear-attention, issues 640 and 984).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdft_cli.engine.kernels.bound import CHUNKS, CONVOLUTION, CONVOLUTION_STEP, ONE_TOKEN, Bound

FACTOR = 4
TOKENS = 96
"""A chunk of 64 and a part of one."""
FEATURES = 128
"""Of the convolution."""

Inputs = Sequence[tuple[str, Tensor, bool]]
"""Name, value in fp32, and whether it has the model's type; others stay in fp32."""


@dataclass(frozen=True)
class Agreement:
    """Relative distances (L2) from the reference in fp32, by quantity; `floor` is that of the reference in bf16."""

    distances: dict[str, float]
    floor: float

    @property
    def worst(self) -> str:
        """The quantity that is furthest away; one that is not a number counts as furthest."""
        return max(
            self.distances, key=lambda name: (self.distances[name] != self.distances[name], self.distances[name])
        )

    @property
    def holds(self) -> bool:
        """Whether all distances are rounding."""
        return self.distances[self.worst] <= FACTOR * self.floor


def compared(bound: Bound, device: torch.device) -> Agreement:
    """Compare a bound function with the reference, at the sizes of the module that calls it, in bf16.

    Raises:
        Exception: whatever the kernel raises, in its backward pass too.
    """
    inputs, call = _case(bound, device)
    reference = reference_of(bound.what)

    def run(function: Callable[..., Any], dtype: torch.dtype) -> dict[str, Tensor]:
        own = {name: x.to(dtype if low else x.dtype).clone() for name, x, low in inputs}
        return call(function, own)

    exact = run(reference, torch.float32)
    ours, rounded = run(bound.function, torch.bfloat16), run(reference, torch.bfloat16)
    floor = max(_distance(rounded[name], value) for name, value in exact.items())
    return Agreement({name: _distance(ours[name], value) for name, value in exact.items()}, floor)


def reference_of(what: str) -> Callable[..., Any]:
    """Return transformers' own function in plain torch for a key of `bound.NAMES`."""
    from transformers.models.qwen3_next import modeling_qwen3_next as module

    names = {CHUNKS: "torch_chunk_gated_delta_rule", ONE_TOKEN: "torch_recurrent_gated_delta_rule"}
    own = {CONVOLUTION: "causal_conv1d_fn", CONVOLUTION_STEP: "causal_conv1d_update"}
    found: Callable[..., Any] = inspect.unwrap(getattr(module, (names | own)[what]))
    return found


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def _case(bound: Bound, device: torch.device) -> tuple[Inputs, Callable[..., dict[str, Tensor]]]:
    if bound.what in (CHUNKS, ONE_TOKEN):
        tokens = TOKENS if bound.what == CHUNKS else 1
        return _delta_inputs(bound, tokens, device), _delta_rule if tokens > 1 else _one_token
    return _conv_inputs(bound, device), _convolution if bound.what == CONVOLUTION else _conv_step


def _size(bound: Bound, *names: str) -> int:
    """Return a size of the module by the first of these attributes that it has."""
    found = next((getattr(bound.module, name) for name in names if hasattr(bound.module, name)), None)
    if not isinstance(found, int):
        raise AttributeError(f"{type(bound.module).__name__} names no {names[0]}")
    return found


def _delta_inputs(bound: Bound, tokens: int, device: torch.device) -> Inputs:
    heads, key, value = _size(bound, "num_v_heads"), _size(bound, "head_k_dim"), _size(bound, "head_v_dim")
    random = _Random(device)
    return (
        ("query", random(1, tokens, heads, key), True),
        ("key", random(1, tokens, heads, key), True),
        ("value", random(1, tokens, heads, value), True),
        ("decay", -torch.nn.functional.softplus(random(1, tokens, heads)), False),
        ("beta", random(1, tokens, heads).sigmoid(), True),
        ("state", random(1, heads, key, value) * 0.1, False),
    )


def _conv_inputs(bound: Bound, device: torch.device) -> Inputs:
    width, random = _size(bound, "conv_kernel_size"), _Random(device)
    tokens = 1 if bound.what == CONVOLUTION_STEP else TOKENS
    inputs = (("hidden", random(1, FEATURES, tokens), True), ("weight", random(FEATURES, width), True))
    return (*inputs, ("before", random(1, FEATURES, width), True)) if tokens == 1 else inputs


class _Random:
    """Normal numbers of a fixed seed, the same on every device."""

    def __init__(self, device: torch.device) -> None:
        self.generator, self.device = torch.Generator().manual_seed(0), device

    def __call__(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self.generator).to(self.device)


def _rule(function: Callable[..., Any], own: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = function(
        own["query"],
        own["key"],
        own["value"],
        g=own["decay"],
        beta=own["beta"],
        initial_state=own["state"],
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )
    return found


def _delta_rule(function: Callable[..., Any], own: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.enable_grad():
        own = {name: x.requires_grad_() for name, x in own.items()}
        out, after = _rule(function, own)
        return _with_gradients({"output": out, "state after": after}, own)


def _one_token(function: Callable[..., Any], own: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.no_grad():
        out, after = _rule(function, own)
    return {"output": out, "state after": after}


def _convolution(function: Callable[..., Any], own: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.enable_grad():
        own = {name: x.requires_grad_() for name, x in own.items()}
        return _with_gradients({"output": function(own["hidden"], own["weight"], None, activation="silu")}, own)


def _conv_step(function: Callable[..., Any], own: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.no_grad():
        out = function(own["hidden"], own["before"], own["weight"], None, "silu")
    return {"output": out, "state after": own["before"]}


def _with_gradients(values: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Go back from a fixed weighting of the values; return them, and the gradient of each input."""
    random = _Random(next(iter(values.values())).device)
    loss = torch.stack([(value.float() * random(*value.shape)).sum() for value in values.values()]).sum()
    gradients = torch.autograd.grad(loss, list(own.values()))
    found = {f"gradient of {name}": grad for name, grad in zip(own, gradients, strict=True)}
    return {**{name: value.detach() for name, value in values.items()}, **found}
