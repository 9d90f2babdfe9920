"""Decoding without copies of the cache: keys and values in one buffer, and attention that does not repeat them.

A stock cache is copied whole for every token, and with padding, stock attention repeats keys and values for every query
head. At 2,000 tokens of prompt those copies take most of the time of a decode.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from sdft_cli.engine.tree_attention import TREE, attend_in_blocks


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


def attend_in_groups(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """Attention in blocks (`tree_attention.py`), but single queries with a mask go to their key head together.

    Args:
        module: the attention layer.
        query: (B, heads, n, d).
        key, value: (B, key heads, T, d).
        attention_mask: (B, 1, n, T), or None.
        settings: as transformers passes them; `scaling` of the scores.

    Returns (B, n, heads, d).
    """
    (batch, heads, queries, size), kv_heads = query.shape, key.shape[1]
    if queries > 1 or heads == kv_heads or attention_mask is None:
        return attend_in_blocks(module, query, key, value, attention_mask, **settings)
    folded = query.reshape(batch, kv_heads, heads // kv_heads, size)
    output = functional.scaled_dot_product_attention(
        folded, key, value, attn_mask=attention_mask, scale=settings.get("scaling")
    )
    return output.reshape(batch, 1, heads, value.shape[-1]), None


GROUPED = "sdft_grouped"
AttentionInterface.register(GROUPED, attend_in_groups)
AttentionMaskInterface.register(GROUPED, sdpa_mask)


@contextmanager
def grouped_attention(config: Any) -> Iterator[None]:
    """Let the layers of this (text) configuration attend by `attend_in_groups`, if they attend by sdpa."""
    own = config._attn_implementation
    if own in ("sdpa", TREE):
        config._attn_implementation = GROUPED
    try:
        yield
    finally:
        config._attn_implementation = own
