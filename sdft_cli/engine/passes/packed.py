"""Packed passes: sequences whose common prefixes are stored once, as a tree, run in one pass.

The states and the gradient are those of independent turns up to rounding; `choose.py` compares them on the loaded
model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.passes.attention import Branches, takes_kernels, use_tree_attention
from sdft_cli.engine.passes.padded import Sequences, context_obstacle
from sdft_cli.engine.passes.tree_attention import tree_mask


@dataclass(frozen=True)
class Branch:
    """New tokens `start:stop` of the tree; `path` are the indices of all tokens before them, first to last."""

    start: int
    stop: int
    path: np.ndarray


@dataclass(frozen=True)
class PrefixTree:
    """A radix tree over sequences, laid out as one array of its distinct tokens.

    `ids` (N,) token ids; `depths` (N,) position of each in its sequences; `rows[i]` (len(sequence i),) indices into
    `ids` that spell sequence i; `branches` in order of their tokens, one for each sequence that adds any.
    """

    ids: np.ndarray
    depths: np.ndarray
    rows: list[np.ndarray]
    branches: list[Branch]

    def __len__(self) -> int:
        return len(self.ids)

    def ends(self) -> np.ndarray:
        """Return (N,) the place behind the last token below each one: token q sees token k if k <= q < ends[k]."""
        found = np.full(len(self), len(self))
        live = np.empty(0, dtype=np.int64)
        for branch in self.branches:
            found[live[len(branch.path) :]] = branch.start
            live = np.concatenate([branch.path, np.arange(branch.start, branch.stop)])
        return found


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """Return the number of tokens that two sequences share from their start."""
    shorter = min(len(a), len(b))
    different = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(different[0]) if len(different) else shorter


def build_tree(sequences: Sequence[Sequence[int]]) -> PrefixTree:
    """Lay sequences out as a tree; they need not be extensions of each other, and may be equal or empty.

    In lexical order a sequence shares with the one before it all that it shares with any before it, so one pass is
    enough: O(total length), after the sort.
    """
    arrays = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
    rows: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * len(arrays)
    ids: list[np.ndarray] = []
    branches: list[Branch] = []
    size = 0
    last = row = np.empty(0, dtype=np.int64)
    for index in sorted(range(len(arrays)), key=lambda i: list(sequences[i])):
        shared = common_prefix(last, arrays[index])
        new = arrays[index][shared:]
        row = np.concatenate([row[:shared], np.arange(size, size + len(new))])
        if len(new):
            branches.append(Branch(size, size + len(new), row[:shared]))
        ids.append(new)
        rows[index], last, size = row, arrays[index], size + len(new)
    depths = [np.arange(len(b.path), len(b.path) + b.stop - b.start) for b in branches]
    empty = np.empty(0, dtype=np.int64)
    return PrefixTree(np.concatenate([empty, *ids]), np.concatenate([empty, *depths]), rows, branches)


def shared_passes(sequences: Sequence[Sequence[int]], max_tokens: int, max_items: int | None = None) -> list[list[int]]:
    """Cut sequences into groups whose trees hold at most `max_tokens` tokens; neighbours share the most.

    Args:
        sequences: token ids.
        max_tokens: cap on a tree; a sequence that is longer is a group of its own.
        max_items: cap on the sequences of a group.

    Returns lists of indices, each index once.
    """
    arrays = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
    groups: list[list[int]] = []
    size = 0
    for index in sorted(range(len(arrays)), key=lambda i: list(sequences[i])):
        whole = len(arrays[index])
        new = whole - common_prefix(arrays[groups[-1][-1]], arrays[index]) if groups else whole
        if groups and (max_items is None or len(groups[-1]) < max_items) and size + new <= max_tokens:
            groups[-1].append(index)
            size += new
        else:
            groups.append([index])
            size = whole
    return groups


def packed_states(backend: Backend, rows: Sequences) -> list[Tensor]:
    """Return the same states from one row that holds each distinct prefix once.

    Every token has its own position and sees its own ancestors only (`attention.py`), so its state, and the gradient
    through it, are those of its sequence alone. Exact for attention over the full context; not for recurrent layers.
    """
    states, where = _packed(backend, rows, use_cache=False)
    return [states.last_hidden_state[0][index] for index in where]


def _packed(backend: Backend, rows: Sequences, use_cache: bool) -> tuple[Any, list[Tensor]]:
    tree = build_tree(rows)
    output = backend.trunk_pass(
        input_ids=torch.from_numpy(tree.ids)[None].to(backend.device),
        attention_mask=_mask_of(backend, tree),
        position_ids=torch.from_numpy(tree.depths)[None].to(backend.device),
        use_cache=use_cache,
    )
    return output, [torch.from_numpy(row).to(backend.device) for row in tree.rows]


def _mask_of(backend: Backend, tree: PrefixTree) -> Any:
    """Return what the layers take as the mask of a tree."""
    if len(tree.branches) < 2:
        return None  # a plain sequence: without a mask the attention kernel skips the upper triangle
    use_tree_attention(backend.base.config.get_text_config())
    if backend.block_masks:
        return tree_mask(torch.from_numpy(tree.ends()).to(backend.device))
    return branches_of(tree, backend.device)


def branches_of(tree: PrefixTree, device: torch.device) -> Branches:
    """Return the mask of a tree as its branches."""
    seen = [np.append(branch.path, np.arange(branch.start, branch.stop)) for branch in tree.branches]
    lengths = [branch.stop - branch.start for branch in tree.branches]
    return Branches([torch.from_numpy(places).to(device) for places in seen], lengths)


def packed_cache(backend: Backend, prompts: Sequences, max_tokens: int, room: int = 0) -> Any:
    """Return the key-value cache of all but the last token of each prompt, left-padded to one width W.

    Common prefixes are computed once, in packed passes of at most `max_tokens` tokens. Keys, values: (B, heads, W, d),
    in buffers with room for `room` tokens more.
    """
    from sdft_cli.engine.passes.decode_cache import batch_cache

    rows = [list(prompt[:-1]) for prompt in prompts]
    width = max(map(len, rows))
    attention: list[tuple[Tensor, Tensor]] = []
    for group in shared_passes(rows, max_tokens):
        output, where = _packed(backend, [rows[i] for i in group], use_cache=True)
        layers = [(layer.keys[0], layer.values[0]) for layer in output.past_key_values.layers]
        if not attention:
            shape = (len(rows), layers[0][0].shape[0], width + room)
            attention = [(k.new_zeros(*shape, k.shape[-1]), v.new_zeros(*shape, v.shape[-1])) for k, v in layers]
        for i, index in zip(group, where, strict=True):
            for (keys, values), (k, v) in zip(attention, layers, strict=True):
                keys[i, :, width - len(index) : width] = k[:, index]
                values[i, :, width - len(index) : width] = v[:, index]
    return batch_cache(backend.base.config.get_text_config(), attention, [], room)


def packing_obstacle(model: Any) -> str | None:
    """Say why a model cannot run packed, or None if it can."""
    if not takes_kernels(model):
        return "the model has an attention of its own"
    config = model.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ())
    if layers - {"full_attention"}:
        return f"the model has {', '.join(sorted(layers - {'full_attention'}))} layers"
    if config._attn_implementation not in ("sdpa", "sdft_tree"):  # ours (attention.py)
        return f"attention of type {config._attn_implementation} takes no boolean mask"
    return context_obstacle(config)
