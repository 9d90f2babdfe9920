"""The cache of a decode: keys and values of a layer in one buffer with room for the tokens that follow.

A stock cache is copied whole for every token. At 2,000 tokens of prompt those copies, and the keys that stock attention
repeats for every query head (`attention.py`), take most of the time of a decode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, LinearAttentionLayer


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of a layer, (B, heads, T, d), in buffers with room for `capacity` tokens; longer ones still fit.

    `keys` and `values` are views of what has been written.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        if self.buffers is None or stop > self.capacity:
            self.capacity = max(self.capacity, stop)
            self._allocate(key_states, value_states, start)
        assert self.buffers is not None
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:stop] = new
        keys, values = (buffer[:, :, :stop] for buffer in self.buffers)
        self.keys, self.values = keys, values
        return keys, values

    def fill(self, keys: Tensor, values: Tensor, filled: int) -> None:
        """Take buffers (B, heads, capacity, d) whose first `filled` tokens are written."""
        self.lazy_initialization(keys, values)
        self.capacity, self.buffers = keys.shape[2], (keys, values)
        self.keys, self.values = keys[:, :, :filled], values[:, :, :filled]

    def _allocate(self, keys: Tensor, values: Tensor, filled: int) -> None:
        first, second = (x.new_empty((*x.shape[:2], self.capacity, x.shape[-1])) for x in (keys, values))
        if filled and self.buffers is not None:
            first[:, :, :filled] = self.buffers[0][:, :, :filled]
            second[:, :, :filled] = self.buffers[1][:, :, :filled]
        self.buffers = (first, second)


def roomy_cache(config: Any, capacity: int) -> Cache:
    """Return an empty cache for this (text) configuration; layers that keep all keys have room for so many tokens."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


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
