"""What a model remembers of the tokens before: one live path that can be rewound, with the gradient that reaches it.

A stock cache keeps a new copy of all keys and values in every layer for the backward pass, and writes the states of
recurrent layers in place, which breaks autograd. Here keys and values are written into one buffer per layer, which
attention reads as it is, and states are replaced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface
from transformers.cache_utils import Cache, DynamicLayer, LinearAttentionLayer

from sdft_cli.engine.decoding import RoomyLayer, roomy_cache

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


def batch_cache(
    config: Any, attention: Sequence[tuple[Tensor, Tensor]], recurrent: Sequence[Tensor], room: int = 0
) -> Cache:
    """Return a cache of these contents, as `generate` takes it.

    Args:
        config: of the language model.
        attention: keys and values of each attention layer, (B, heads, W + room, d); the room is not filled yet.
        recurrent: as `Path.states`, over a batch.
        room: tokens that will follow.
    """
    width = attention[0][0].shape[2] if attention else 0
    cache = roomy_cache(config, width)
    pairs, states = iter(attention), iter(recurrent)
    for layer in cache.layers:
        if isinstance(layer, LinearAttentionLayer):
            conv, memory = next(states), next(states)
            layer.update_conv_state(conv)
            layer.update_recurrent_state(memory)
        elif isinstance(layer, RoomyLayer):
            layer.fill(*next(pairs), width - room)
    return cache


BLOCK = 128
"""Queries of a block behind a path: what kernels and masks take grows with block x path."""


@lru_cache(maxsize=2)
def _causal_mask(queries: int, keys: int, groups: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return (1, 1, groups * queries, keys) to add to scores: the last query sees all keys, the one before one less.

    One tensor for all layers of a pass. Its rows start at multiples of 16 entries, as fused kernels want them.
    """
    mask = torch.full((groups * queries, -(-keys // 16) * 16), -torch.inf, dtype=dtype, device=device)[:, :keys]
    for rows in mask.split(queries):
        rows.triu_(keys - queries + 1)
    return mask[None, None]


def attend_along_path(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """Causal attention of the last n tokens of a path, in the form that transformers calls; in blocks of queries.

    Query heads that share a key head are laid behind each other as more queries of it, since with a mask fused kernels
    want as many key heads as query heads, and repeated keys would be kept for the backward pass in every layer.

    Args:
        module: the attention layer; unused.
        query: (1, heads, n, d).
        key, value: (1, key heads, path + n, d).
        attention_mask: None; there is no padding on a path.
        settings: `scaling` of the scores.

    Returns (1, n, heads, d).
    """
    assert attention_mask is None, "a path has no padding"
    (_, heads, queries, size), (_, kv_heads, keys, _) = query.shape, key.shape
    scale = settings.get("scaling")
    if queries == keys:
        grouped = heads != kv_heads
        found = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=grouped
        )
    else:
        groups, path = heads // kv_heads, keys - queries
        widest = path + max(BLOCK, queries // BLOCK * BLOCK)  # keys of the last whole block
        parts = []
        for start in range(0, queries, BLOCK):
            stop = min(start + BLOCK, queries)
            seen = path + stop
            whole = stop - start == BLOCK
            # All whole blocks share one mask: a narrower one is its right part.
            mask = _causal_mask(stop - start, widest if whole else seen, groups, query.dtype, query.device)[..., -seen:]
            folded = query[:, :, start:stop].reshape(1, kv_heads, groups * (stop - start), size)
            part = functional.scaled_dot_product_attention(
                folded, key[:, :, :seen], value[:, :, :seen], attn_mask=mask, scale=scale
            )
            parts.append(part.reshape(1, heads, stop - start, value.shape[-1]))
        found = torch.cat(parts, 2)
    return found.transpose(1, 2).contiguous(), None


ATTENTION = "sdft_path"
# transformers makes no mask for an attention of this kind: it has none registered for it.
AttentionInterface.register(ATTENTION, attend_along_path)


def forget_masks() -> None:
    """Free the mask of the last pass."""
    _causal_mask.cache_clear()


@contextmanager
def path_attention(config: Any) -> Iterator[None]:
    """Let the layers of this (text) configuration attend by `attend_along_path`; only passes over a path may run."""
    own = config._attn_implementation
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = own
