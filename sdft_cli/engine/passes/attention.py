"""Attention kernels that transformers is given: of packed passes, of passes along one path, and of decoding.

- packed (`attend_packed`): each branch of a tree attends to its path and to itself, and nothing of another branch is
  computed (`Branches`); on a GPU by FlexAttention (`tree_attention.py`).
- along a path (`attend_along_path`): causal attention of the last n tokens, in one call or in blocks of queries.
- decoding (`attend_in_groups`): single queries that share a key head go to it together, so that keys are not repeated.
- decoding over fixed buffers (`attend_to_slots`): the same, and parts of the keys are summed apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from sdft_cli.engine.passes.tree_attention import attend_in_tree


def takes_kernels(model: Any) -> bool:
    """Say whether a Hugging Face model asks transformers for its attention; others (Falcon) have their own for each."""
    return bool(model.get_decoder()._can_set_attn_implementation())


class Branches(BlockMask):
    """The mask of a tree of N tokens, as the places that each branch sees; they lie in the order of their tokens.

    No block mask of torch's, but of that type: transformers hands masks of it to the layers as they are.
    """

    def __init__(self, seen: Sequence[Tensor], lengths: Sequence[int]) -> None:
        """Take the places (path + n,) of each branch's path and, last, of its own n tokens; n are its `lengths`."""
        self.seen = list(seen)
        self.lengths = list(lengths)

    @property
    def shape(self) -> tuple[int, ...]:
        """(1, 1, N, N)."""
        return (1, 1, sum(self.lengths), sum(self.lengths))

    def parts(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the place of each branch, and the places that it sees."""
        start = 0
        for seen, length in zip(self.seen, self.lengths, strict=True):
            yield slice(start, start + length), seen
            start += length


class _BranchAttention(torch.autograd.Function):
    """Attention of each branch to its path and itself; going back computes it again, so that only q, k, v are kept."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda")  # type: ignore[untyped-decorator]
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, branches: Branches, scale: float | None) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.branches, ctx.scale = branches, scale
        batch, heads, tokens, _ = query.shape
        found = query.new_empty(batch, tokens, heads, value.shape[-1]).transpose(1, 2)
        for place, seen in branches.parts():
            keys, values = key.index_select(2, seen), value.index_select(2, seen)
            found[:, :, place] = _attend_last(query[:, :, place], keys, values, scale)
        return found

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for place, seen in ctx.branches.parts():
            own = (query[:, :, place], key.index_select(2, seen), value.index_select(2, seen))
            own = tuple(x.detach().requires_grad_() for x in own)
            with torch.enable_grad():
                found = _attend_last(*own, ctx.scale)
            dq[:, :, place], keys, values = torch.autograd.grad(found, own, gradient[:, :, place])
            dk.index_add_(2, seen, keys)
            dv.index_add_(2, seen, values)
        return dq, dk, dv, None, None


def attend_packed(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | BlockMask | None, **settings: Any
) -> tuple[Tensor, None]:
    """Attention of the tokens of a tree; stock attention (sdpa) of what is none.

    Args:
        module: the attention layer.
        query: (B, heads, N, d); B = 1 for a tree.
        key, value: (B, key heads, N, d).
        attention_mask: `Branches`, or blocks as `tree_mask` makes them, or anything that stock attention takes.
        settings: as transformers passes them; `scaling` of the scores.

    Returns (B, N, heads, d).
    """
    if not isinstance(attention_mask, BlockMask):
        stock: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
        return stock
    scale = settings.get("scaling")
    if isinstance(attention_mask, Branches):
        found = _BranchAttention.apply(query, key, value, attention_mask, scale)
    else:
        found = attend_in_tree(query, key, value, attention_mask, scale)
    return found.transpose(1, 2).contiguous(), None


TREE = "sdft_tree"
AttentionInterface.register(TREE, attend_packed)
AttentionMaskInterface.register(TREE, sdpa_mask)


def use_tree_attention(config: Any) -> None:
    """Let the layers of this (text) configuration attend by `attend_packed`, if they attend by sdpa.

    For good, not for a while: gradient checkpointing runs layers again during the backward pass.
    """
    if config._attn_implementation == "sdpa":
        config._attn_implementation = TREE


ALIGNED = 8
"""Numbers at whose multiples a mask's rows begin."""
PATH_BLOCK = 128
"""Queries of a block behind a path: what kernels and masks take grows with block x path."""
MASK_STEP = 512
"""Masks are made for multiples of so many keys, so that few of them serve many lengths."""


@lru_cache(maxsize=2)
def _causal_mask(queries: int, keys: int, groups: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return (queries * groups, keys) to add to scores: the last `groups` rows see all keys, those before one less.

    One tensor serves all layers of a pass, and all shorter ones: fewer queries or keys are its lower right part. Fused
    kernels of a GPU want each row to begin at a multiple of 16 bytes, so rows are `ALIGNED` numbers apart, and a part
    has to begin at a multiple of as many.
    """
    wide = -(-keys // ALIGNED) * ALIGNED
    mask = torch.full((queries, wide), -torch.inf, dtype=dtype, device=device).triu_(keys - queries + 1)
    return mask.repeat_interleave(groups, 0)[:, :keys]


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
    return _attend_last(query, key, value, settings.get("scaling")).transpose(1, 2).contiguous(), None


def _attend_last(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """Causal attention (1, heads, n, d) of the last n tokens of a path; shapes as for `attend_behind`."""
    queries, keys, grouped = query.shape[2], key.shape[2], query.shape[1] != key.shape[1]
    if queries == keys:
        return functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=grouped
        )
    if _flash_runs(query, key, value, grouped):
        mask: Any = causal_lower_right(queries, keys)
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scale, enable_gqa=grouped
        )
    return attend_behind(query, key, value, scale)


def _flash_runs(query: Tensor, key: Tensor, value: Tensor, grouped: bool) -> bool:
    """Say whether flash attention takes these; on a CPU, and for fp32, it does not."""
    return query.is_cuda and can_use_flash_attention(SDPAParams(query, key, value, None, 0.0, False, grouped))


def attend_behind(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """Causal attention of the last n tokens of a path, in blocks of queries, by kernels that take a mask.

    Query heads that share a key head become more queries of it, since with a mask fused kernels want as many key heads
    as query heads, and repeated keys would be kept for the backward pass in every layer.

    Args:
        query: (1, heads, n, d).
        key, value: (1, key heads, path + n, d).
        scale: of the scores; None: d ** -0.5.

    Returns (1, heads, n, d).
    """
    (_, heads, queries, size), (_, kv_heads, keys, _) = query.shape, key.shape
    groups, path = heads // kv_heads, keys - queries
    most = -(-keys // MASK_STEP) * MASK_STEP
    parts = []
    for start in range(0, queries, PATH_BLOCK):
        stop = min(start + PATH_BLOCK, queries)
        rows, seen = (stop - start) * groups, path + stop
        mask = _causal_mask(PATH_BLOCK, most + seen % ALIGNED, groups, query.dtype, query.device)
        folded = query[:, :, start:stop].reshape(1, kv_heads, groups, stop - start, size).transpose(2, 3)
        part = functional.scaled_dot_product_attention(
            folded.reshape(1, kv_heads, rows, size),
            key[:, :, :seen],
            value[:, :, :seen],
            attn_mask=mask[None, None, -rows:, -seen:],
            scale=scale,
        )
        part = part.reshape(1, kv_heads, stop - start, groups, value.shape[-1]).transpose(2, 3)
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
    """Attention of packed passes (`attend_packed`), but single queries with a mask go to their key head together.

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
        return attend_packed(module, query, key, value, attention_mask, **settings)
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
