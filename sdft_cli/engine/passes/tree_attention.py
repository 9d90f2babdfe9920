"""Attention of packed passes by FlexAttention: a tree's mask as blocks, none of which is computed if it hides all.

In a tree's order (`packed.py`) the tokens below token k stand right behind it, up to its end, so token q sees token k
if k <= q < end(k). That is one number per token in place of a mask of N x N, and says of a block of queries and keys
whether all, some or none are seen. FlexAttention compiles it into one kernel for a GPU. On a CPU it computes every
score, and has no backward pass, so there branches attend one after the other (`attention.py`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers.integrations.sdpa_attention import repeat_kv

from sdft_cli.engine.models.backend import Backend
from sdft_cli.errors import WARNING

SIDE = 128
"""Queries, and keys, of a block."""
CLOSE = {torch.float32: 1e-3}
"""Relative distance from attention with a dense mask that counts as rounding, by dtype; of other ones `COARSE`."""
COARSE = 3e-2


def tree_mask(ends: Tensor) -> BlockMask:
    """Return the mask of a tree, (1, 1, N, N), as blocks.

    Args:
        ends: (N,) for each token the place behind the last token below it.
    """
    tokens = len(ends)
    count = -(-tokens // SIDE)
    blocks = functional.pad(ends, (0, count * SIDE - tokens), value=tokens).view(count, SIDE)
    first = SIDE * torch.arange(count, device=ends.device)
    last = (first + SIDE).clamp(max=tokens) - 1  # query
    before = first[:, None] > first
    some = before & (blocks.amax(1) > first[:, None])
    whole = before & (blocks.amin(1) > last[:, None])
    partly = (some & ~whole) | torch.eye(count, dtype=torch.bool, device=ends.device)
    bounds = blocks.flatten()

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < bounds[key])

    return BlockMask.from_kv_blocks(
        *_listed(partly), *_listed(whole), BLOCK_SIZE=SIDE, mask_mod=seen, seq_lengths=(tokens, tokens)
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many blocks of keys each block of queries has, (1, 1, n), and which, in front, (1, 1, n, n)."""
    order = blocks.to(torch.int32).argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]


@lru_cache(maxsize=1)
def _compiled() -> Any:
    """FlexAttention for a GPU: one kernel for any number of tokens."""
    return torch.compile(flex_attention, dynamic=True)


def attend_in_tree(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float | None) -> Tensor:
    """Attention of the tokens of a tree.

    Args:
        query: (1, heads, N, d).
        key, value: (1, key heads, N, d).
        mask: as `tree_mask` makes it.
        scale: of the scores; None: d ** -0.5.

    Returns (1, heads, N, d).
    """
    groups = query.shape[1] // key.shape[1]
    if groups & (groups - 1):  # its kernels share key heads among 1, 2, 4, ... query heads
        key, value, groups = repeat_kv(key, groups), repeat_kv(value, groups), 1
    attend = _compiled() if query.is_cuda else flex_attention
    found: Tensor = attend(query, key, value, block_mask=mask, scale=scale, enable_gqa=groups > 1)
    return found


def choose_tree_attention(backend: Backend) -> str | None:
    """Set `backend.block_masks`, whether packed passes attend by FlexAttention.

    On a GPU it is compiled and compared with a dense mask, values and gradients, on a small tree of the model's heads.

    Returns a sentence that says so; None on a CPU, which has no kernel of it.
    """
    backend.block_masks = False
    if backend.device.type != "cuda":
        return None
    trouble = tree_trouble(backend)
    if trouble:
        return f"{WARNING}packed passes attend branch by branch, many small kernels on a GPU ({trouble})"
    backend.block_masks = True
    return "Packed passes: attention by FlexAttention (compared with a dense mask)"


def tree_trouble(backend: Backend) -> str | None:
    """Compare attention in a small tree, of the model's heads and type, with that behind a dense mask; None: alike."""
    config = backend.base.config.get_text_config()
    heads, kv_heads = config.num_attention_heads, getattr(config, "num_key_value_heads", config.num_attention_heads)
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    dtype = backend.head.weight.dtype
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, count, len(SMALL), size) for count in (heads, kv_heads, kv_heads, heads)]
    drawn = [torch.randn(shape, generator=generator).to(backend.device, dtype) for shape in shapes]
    try:
        ours, exact = (_with_gradients(drawn, dense) for dense in (False, True))
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, ImportError, RuntimeError, TypeError, ValueError) as error:  # also what a compiler raises
        reason = str(error).strip().splitlines() or ["no reason given"]
        return f"FlexAttention ends in an error, {type(error).__name__}: {reason[0]}"
    far = max(float((a - b).float().norm() / b.float().norm()) for a, b in zip(ours, exact, strict=True))
    if not far <= CLOSE.get(dtype, COARSE):
        return f"FlexAttention differs from a dense mask by {far:.1e}"
    return None


SMALL = [300] * 40 + [200] * 110 + [170] * 20 + [200] * 30 + [300] * 100
"""The ends of a tree: a trunk of 40, below it two branches, and a third one below the first."""


def _with_gradients(drawn: list[Tensor], dense: bool) -> list[Tensor]:
    """Return attention and the gradients of queries, keys and values, weighted by the last of four tensors."""
    *inputs, weight = drawn
    query, key, value = (x.detach().clone().requires_grad_(weight.is_cuda) for x in inputs)
    ends = torch.tensor(SMALL, device=query.device)
    if dense:
        places = torch.arange(len(ends), device=query.device)
        seen = (places <= places[:, None]) & (places[:, None] < ends)
        groups = query.shape[1] // key.shape[1]
        found = functional.scaled_dot_product_attention(
            query, repeat_kv(key, groups), repeat_kv(value, groups), attn_mask=seen
        )
    else:
        found = attend_in_tree(query, key, value, tree_mask(ends), None)
    if not found.requires_grad:
        return [found]
    return [found, *torch.autograd.grad((found * weight).sum(), (query, key, value))]
