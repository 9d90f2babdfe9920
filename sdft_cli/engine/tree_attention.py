"""Attention of a packed pass: its 4-D mask in blocks of queries, without the keys that stand behind a block.

In a tree's order every token stands behind its ancestors, so nothing behind a query is ever attended to. Kernels with a
mask do not know that and compute the whole square; in blocks it is little more than the lower half.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

BLOCK = 512
"""Queries of a block; smaller ones spare more and run less well."""


def attend_in_blocks(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """Stock attention (sdpa); a square mask of more than `BLOCK` queries is taken block by block.

    Args:
        module: the attention layer.
        query: (B, heads, N, d).
        key, value: (B, key heads, N, d).
        attention_mask: (B, 1, N, N), False above the diagonal; or anything that stock attention takes.
        settings: as transformers passes them; `scaling` of the scores.

    Returns (B, N, heads, d).
    """
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
