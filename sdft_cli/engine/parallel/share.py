"""Which rows go to which process: rows that begin alike stay together, and each process gets about as many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from sdft_cli.engine.passes.packed import common_prefix

Rows = Sequence[Sequence[int]]


def shares(rows: Rows, count: int, shared: bool = True) -> list[list[int]]:
    """Cut rows into `count` shares whose largest has as few tokens as it can have.

    In lexical order, rows that share a prefix are neighbours; a share is a stretch of that order. So the largest share
    is the least possible of all cuts of this order into stretches, and a prefix is computed again only where it is cut.

    Args:
        rows: token ids.
        count: of processes, at least 1. Shares may be empty.
        shared: a prefix that neighbours have in common is computed once in a share; else each row pays for its own.

    Returns lists of indices, each index once; the same on every machine.
    """
    order = sorted(range(len(rows)), key=lambda i: (list(rows[i]), i))
    found = cut(*token_costs([rows[i] for i in order], shared), count)
    return [[order[i] for i in stretch] for stretch in found]


def cut(whole: Sequence[int], added: Sequence[int], count: int) -> list[list[int]]:
    """Cut rows, in the order in which they stand, into `count` stretches whose largest has the fewest tokens possible.

    Args:
        whole, added: tokens of each row where it begins a stretch, and behind the row before it (`token_costs`).
        count: at least 1; the last stretches may be empty.
    """
    least, most = 0, sum(whole)
    while least < most:
        cap = (least + most) // 2
        if len(_stretches(whole, added, cap)) <= count and cap >= max(whole):
            most = cap
        else:
            least = cap + 1
    found = _stretches(whole, added, most)
    return found + [[] for _ in range(count - len(found))]


def token_costs(rows: Rows, shared: bool = True) -> tuple[list[int], list[int]]:
    """Return the tokens of each row that begins a share, and those of each row behind the one before it."""
    whole = [len(row) for row in rows]
    if not shared or not rows:
        return whole, whole
    arrays = [np.asarray(row, dtype=np.int64) for row in rows]
    common = [0, *(common_prefix(a, b) for a, b in pairwise(arrays))]
    return whole, [size - known for size, known in zip(whole, common, strict=True)]


def _stretches(whole: Sequence[int], added: Sequence[int], cap: int) -> list[list[int]]:
    """Cut as late as the cap allows; a row that is larger alone has a stretch of its own."""
    found: list[list[int]] = []
    tokens = 0
    for i, (alone, behind) in enumerate(zip(whole, added, strict=True)):
        if found and tokens + behind <= cap:
            found[-1].append(i)
            tokens += behind
        else:
            found.append([i])
            tokens = alone
    return found
