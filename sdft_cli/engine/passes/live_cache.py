"""What a model remembers of the tokens before: one live path that can be rewound, with the gradient that reaches it.

A stock cache keeps a new copy of all keys and values in every layer for the backward pass, and writes the states of
recurrent layers in place, which breaks autograd. Here keys and values are written into one buffer per layer, which
attention reads as it is, and states are replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import Cache, DynamicLayer, LinearAttentionLayer

LINEAR = "linear_attention"


class _Append(torch.autograd.Function):
    """Write new keys (or values) behind those of the path and return all; the gradient of old ones is summed aside."""

    @staticmethod
    def forward(ctx: Any, new: Tensor, buffer: _Buffer, start: int) -> Tensor:
        ctx.buffer, ctx.start = buffer, start
        stop = start + new.shape[2]
        buffer.data[:, :, start:stop] = new
        return buffer.data[:, :, :stop].detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        ctx.buffer.gradient[:, :, : ctx.start] += gradient[:, :, : ctx.start]
        return gradient[:, :, ctx.start :], None, None


class _Buffer:
    """Keys or values of a layer along the live path, (1, heads, capacity, d), and their gradient, at least fp32."""

    def __init__(self, like: Tensor, capacity: int, gradients: bool) -> None:
        shape = (1, like.shape[1], capacity, like.shape[3])
        self.data = like.new_empty(shape)
        self.gradient = (
            like.new_zeros(shape, dtype=torch.promote_types(like.dtype, torch.float32)) if gradients else None
        )
        self.new: Tensor | None = None

    def append(self, new: Tensor, start: int) -> Tensor:
        """Put `new` (1, heads, n, d) behind the first `start` entries and return all (1, heads, start + n, d)."""
        self.new = new if torch.is_grad_enabled() else None
        return _Append.apply(new, self, start)  # type: ignore[no-any-return, no-untyped-call]


class PathAttention(DynamicLayer):  # type: ignore[misc]
    """Keys and values of an attention layer along the live path."""

    def __init__(self, capacity: int, gradients: bool) -> None:
        super().__init__()
        self.capacity, self.gradients = capacity, gradients
        self.length = 0
        self.buffers: tuple[_Buffer, ...] = ()

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.buffers:
            self.buffers = tuple(_Buffer(x, self.capacity, self.gradients) for x in (key_states, value_states))
        keys, values = self.buffers
        start, self.length = self.length, self.length + key_states.shape[2]
        return keys.append(key_states, start), values.append(value_states, start)

    def get_seq_length(self) -> int:
        return self.length


class PathRecurrent(LinearAttentionLayer):  # type: ignore[misc]
    """Convolution and recurrent state of a linear-attention layer at the end of the live path, replaced not written."""

    def update_conv_state(
        self, conv_states: Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **_: Any
    ) -> Tensor:
        size = conv_kernel_size or conv_states.shape[-1]
        before = self.conv_states[0]
        inputs = conv_states if before is None else torch.cat([before, conv_states], -1)
        last = functional.pad(inputs, (max(0, size - inputs.shape[-1]), 0))[..., -size:]
        self.conv_states[0] = last.clone()  # a view would keep the inputs of the whole pass alive
        self.has_previous_state[0] = True
        return inputs

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **_: Any) -> Tensor:
        self.recurrent_states[0] = recurrent_states
        return recurrent_states

    def load(self, conv: Tensor | None, recurrent: Tensor | None) -> None:
        """Set both states, (1, channels, kernel) and (1, heads, d_k, d_v); None: nothing came before."""
        self.conv_states[0], self.recurrent_states[0] = conv, recurrent
        self.has_previous_state[0] = conv is not None


class Path:
    """A model's cache along one path of at most `capacity` tokens; `gradients`: a backward pass will follow."""

    def __init__(self, config: Any, capacity: int, gradients: bool) -> None:
        kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
        self.attention = [PathAttention(capacity, gradients) for kind in kinds if kind != LINEAR]
        self.recurrent = [PathRecurrent() for kind in kinds if kind == LINEAR]
        attention, recurrent = iter(self.attention), iter(self.recurrent)
        self.cache = Cache(layers=[next(recurrent) if kind == LINEAR else next(attention) for kind in kinds])

    def rewind(self, length: int, states: Sequence[Tensor]) -> None:
        """Go back to the first `length` tokens, where the recurrent layers had these states (as `states` returns)."""
        for attention in self.attention:
            attention.length = length
        for number, recurrent in enumerate(self.recurrent):
            recurrent.load(*(states[2 * number : 2 * number + 2] if states else (None, None)))

    def states(self) -> list[Tensor]:
        """Return the states of the recurrent layers: convolution and recurrence of the first, of the second, ..."""
        found = [x for layer in self.recurrent for x in (layer.conv_states[0], layer.recurrent_states[0])]
        return [x for x in found if x is not None]

    def keys_and_values(self, length: int) -> list[tuple[Tensor, Tensor]]:
        """Return views of the first `length` keys and values of each attention layer, (heads, length, d)."""
        return [(keys.data[0, :, :length], values.data[0, :, :length]) for keys, values in self._pairs()]

    def take_gradients(self, start: int, stop: int) -> list[tuple[Tensor, Tensor]]:
        """Return the keys and values of the last pass, `start:stop`, with the gradients that reached them.

        The sums are set to 0, so that another branch can use the place. Tensors that need no gradient are left out.
        """
        found = []
        for buffer in (b for pair in self._pairs() for b in pair):
            assert buffer.gradient is not None
            place = buffer.gradient[:, :, start:stop]
            if buffer.new is not None and buffer.new.requires_grad:
                found.append((buffer.new, place.to(buffer.new.dtype, copy=True)))
            place.zero_()
            buffer.new = None
        return found

    def _pairs(self) -> list[tuple[_Buffer, _Buffer]]:
        return [(layer.buffers[0], layer.buffers[1]) for layer in self.attention]
