"""Attention kernels that transformers is given: of packed passes, of passes along one path, and of decoding.

- packed (`attend_in_blocks`): in a tree's order every token stands behind its ancestors, so nothing behind a query is
  ever attended to. Kernels with a mask do not know that and compute the whole square; in blocks of queries it is little
  more than the lower half.
- along a path (`attend_along_path`): causal attention of the last n tokens, in one call or in blocks of queries.
- decoding (`attend_in_groups`): single queries that share a key head go to it together, so that keys are not repeated.
- decoding over fixed buffers (`attend_to_slots`): the same, and parts of the keys are summed apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from sdft_cli.engine.passes.tree_attention import attend_in_tree

BLOCK = 512
"""Queries of a block; smaller ones spare more and run less well."""


def takes_kernels(model: Any) -> bool:
    """Say whether a Hugging Face model asks transformers for its attention; others (Falcon) have their own for each."""
    return bool(model.get_decoder()._can_set_attn_implementation())


def attend_in_blocks(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | BlockMask | None, **settings: Any
) -> tuple[Tensor, None]:
    """Stock attention (sdpa); a square mask of more than `BLOCK` queries is taken block by block.

    Args:
        module: the attention layer.
        query: (B, heads, N, d).
        key, value: (B, key heads, N, d).
        attention_mask: (B, 1, N, N), False above the diagonal; or anything that stock attention takes; or blocks.
        settings: as transformers passes them; `scaling` of the scores.

    Returns (B, N, heads, d).
    """
    if isinstance(attention_mask, BlockMask):
        tree = attend_in_tree(query, key, value, attention_mask, settings.get("scaling"))
        return tree.transpose(1, 2).contiguous(), None
    queries, keys = query.shape[2], key.shape[2]
    if attention_mask is None or queries != keys or queries <= BLOCK or settings.get("dropout"):
        found: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
        return found
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    parts = []
    for start in range(0, queries, BLOCK):
        stop = min(start + BLOCK, queries)
        parts.append(
            functional.scaled_dot_product_attention(
                query[:, :, start:stop],
                key[:, :, :stop],
                value[:, :, :stop],
                attn_mask=attention_mask[:, :, start:stop, :stop],
                scale=settings.get("scaling"),
            )
        )
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


TREE = "sdft_tree"
AttentionInterface.register(TREE, attend_in_blocks)
AttentionMaskInterface.register(TREE, sdpa_mask)


def use_tree_attention(config: Any) -> None:
    """Let the layers of this (text) configuration attend by `attend_in_blocks`, if they attend by sdpa.

    For good, not for a while: gradient checkpointing runs layers again during the backward pass.
    """
    if config._attn_implementation == "sdpa":
        config._attn_implementation = TREE


PATH_BLOCK = 128
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
    """Causal attention of the last n tokens of a path, in the form that transformers calls.

    One call where torch has a kernel that is causal from the lower right, flash attention on a GPU; else in blocks.

    Args:
        module: the attention layer; unused.
        query: (1, heads, n, d).
        key, value: (1, key heads, path + n, d).
        attention_mask: None; there is no padding on a path.
        settings: `scaling` of the scores.

    Returns (1, n, heads, d).
    """
    assert attention_mask is None, "a path has no padding"
    queries, keys, grouped = query.shape[2], key.shape[2], query.shape[1] != key.shape[1]
    scale = settings.get("scaling")
    if queries == keys:
        found = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=grouped
        )
    elif _flash_runs(query, key, value, grouped):
        mask: Any = causal_lower_right(queries, keys)
        found = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scale, enable_gqa=grouped
        )
    else:
        found = attend_behind(query, key, value, scale)
    return found.transpose(1, 2).contiguous(), None


def _flash_runs(query: Tensor, key: Tensor, value: Tensor, grouped: bool) -> bool:
    """Say whether flash attention takes these; on a CPU, and for fp32, it does not."""
    return query.is_cuda and can_use_flash_attention(SDPAParams(query, key, value, None, 0.0, False, grouped))


def attend_behind(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """Causal attention of the last n tokens of a path, in blocks of queries, by kernels that take a mask.

    Query heads that share a key head are laid behind each other as more queries of it, since with a mask fused kernels
    want as many key heads as query heads, and repeated keys would be kept for the backward pass in every layer.

    Args:
        query: (1, heads, n, d).
        key, value: (1, key heads, path + n, d).
        scale: of the scores; None: d ** -0.5.

    Returns (1, heads, n, d).
    """
    (_, heads, queries, size), (_, kv_heads, keys, _) = query.shape, key.shape
    groups, path = heads // kv_heads, keys - queries
    widest = path + max(PATH_BLOCK, queries // PATH_BLOCK * PATH_BLOCK)  # keys of the last whole block
    parts = []
    for start in range(0, queries, PATH_BLOCK):
        stop = min(start + PATH_BLOCK, queries)
        seen = path + stop
        whole = stop - start == PATH_BLOCK
        # All whole blocks share one mask: a narrower one is its right part.
        mask = _causal_mask(stop - start, widest if whole else seen, groups, query.dtype, query.device)[..., -seen:]
        folded = query[:, :, start:stop].reshape(1, kv_heads, groups * (stop - start), size)
        part = functional.scaled_dot_product_attention(
            folded, key[:, :, :seen], value[:, :, :seen], attn_mask=mask, scale=scale
        )
        parts.append(part.reshape(1, heads, stop - start, value.shape[-1]))
    return torch.cat(parts, 2)


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


def attend_in_groups(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """Attention in blocks (`attend_in_blocks`), but single queries with a mask go to their key head together.

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


SLOTS = 512
"""Keys and values in fixed buffers have room for a multiple of so many tokens; each so many are summed apart."""


def attend_to_slots(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **settings: Any
) -> tuple[Tensor, None]:
    """Attention of single queries to all slots of fixed buffers, in the form that transformers calls.

    Matrix products, since no fused kernel fits: flash takes no mask, and the one that does (memory-efficient) reads all
    keys of a key head by one processor of the GPU, as there is one block of queries. Here values are summed in parts of
    `SLOTS`, which run side by side. As in flash, scores and sums are fp32 and weights are in the values' type.

    Args:
        module: the attention layer; unused.
        query: (B, heads, 1, d).
        key, value: (B, key heads, W, d), contiguous; W is a multiple of `SLOTS`. Values are finite everywhere.
        attention_mask: (B, 1, 1, W) bool, True for slots that are seen; at least one of each row.
        settings: `scaling` of the scores.

    Returns (B, 1, heads, d).
    """
    (batch, heads, _, size), (_, kv_heads, slots, _) = query.shape, key.shape
    groups, parts = heads // kv_heads, slots // SLOTS
    scale = size**-0.5 if settings.get("scaling") is None else settings["scaling"]
    scores = _product(query.reshape(batch * kv_heads, groups, size), key.flatten(0, 1).transpose(1, 2)) * scale
    scores = scores.view(batch, heads, 1, slots).masked_fill(~attention_mask, -torch.inf)
    weights = scores.softmax(-1).to(value.dtype).view(batch * kv_heads, groups, parts, SLOTS).transpose(1, 2)
    summed = _product(weights.flatten(0, 1), value.view(batch * kv_heads * parts, SLOTS, value.shape[-1]))
    found = summed.view(batch, kv_heads, parts, groups, value.shape[-1]).sum(2)
    return found.to(query.dtype).reshape(batch, 1, heads, value.shape[-1]), None


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return the product of batches of matrices, at least fp32."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.bmm(a, b, torch.float32)
    wide = torch.promote_types(a.dtype, torch.float32)
    return torch.bmm(a.to(wide), b.to(wide))


SLOTTED = "sdft_slots"


AttentionInterface.register(SLOTTED, attend_to_slots)


@contextmanager
def slot_attention(config: Any) -> Iterator[None]:
    """Let the layers of this (text) configuration attend by `attend_to_slots`; only single tokens may run."""
    own = config._attn_implementation
    config._attn_implementation = SLOTTED
    try:
        yield
    finally:
        config._attn_implementation = own
