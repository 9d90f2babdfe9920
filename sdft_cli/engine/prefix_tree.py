"""Token sequences with their common prefixes stored once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


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

    def mask(self) -> np.ndarray:
        """Return (N, N) bool: may token q see token k? Itself and its ancestors, nothing else."""
        seen = np.zeros((len(self), len(self)), dtype=bool)
        for branch in self.branches:
            seen[branch.start : branch.stop, branch.path] = True
            length = branch.stop - branch.start
            seen[branch.start : branch.stop, branch.start : branch.stop] = np.tri(length, dtype=bool)
        return seen


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


def shared_passes(
    sequences: Sequence[Sequence[int]], max_tokens: int, max_items: int | None = None, attention: float = 0.0
) -> list[list[int]]:
    """Cut sequences into groups whose trees hold at most `max_tokens` tokens; neighbours share the most.

    A tree of n tokens costs `n + attention * n * n`: attention between branches is masked, not spared. So a sequence
    joins a group only if that costs no more than a pass of its own.

    Args:
        sequences: token ids.
        max_tokens: cap on a tree; a sequence that is longer is a group of its own.
        max_items: cap on the sequences of a group.
        attention: cost of attending to one token, in units of the rest of a token's forward pass.

    Returns lists of indices, each index once.
    """

    def cost(tokens: int) -> float:
        return tokens + attention * tokens * tokens

    arrays = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
    groups: list[list[int]] = []
    size = 0
    for index in sorted(range(len(arrays)), key=lambda i: list(sequences[i])):
        whole = len(arrays[index])
        new = whole - common_prefix(arrays[groups[-1][-1]], arrays[index]) if groups else whole
        room = bool(groups) and (max_items is None or len(groups[-1]) < max_items) and size + new <= max_tokens
        if room and cost(size + new) - cost(size) <= cost(whole):
            groups[-1].append(index)
            size += new
        else:
            groups.append([index])
            size = whole
    return groups
