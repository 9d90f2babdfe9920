"""The order in which a depth-first pass visits token sequences with common prefixes. No model here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from sdft_cli.engine.passes.packed import common_prefix

Span = tuple[int, int]
"""Positions `start:stop` of a sequence."""

SHORTEST_SHARED = 16
"""Fewer common tokens than this are computed once for each sequence: a pass of its own costs more than they do."""


@dataclass(frozen=True)
class Enter:
    """The tokens `span` of `sequence`, which other sequences share, come next on the live path."""

    sequence: int
    span: Span


@dataclass(frozen=True)
class Tail:
    """The tokens that belong to `sequence` alone, from the end of the live path to its own end, in spans."""

    sequence: int
    spans: list[Span]


@dataclass(frozen=True)
class Leave:
    """The live path loses the tokens of its last `Enter`; all sequences that share them have been visited."""


def even_spans(start: int, stop: int, longest: int) -> list[Span]:
    """Cut `start:stop` into the fewest spans of at most `longest` tokens (at least 3), as equal as can be.

    A cut span has at least 2 tokens: recurrent layers run single tokens through another kernel, without a gradient.
    """
    count = max(1, -(-(stop - start) // longest))
    cuts = [start + (stop - start) * i // count for i in range(count + 1)]
    return [span for span in pairwise(cuts) if span[0] < span[1]]


def _branch_points(neighbours: Sequence[int], place: int, shortest: int) -> list[int]:
    """Return 0 and the depths at which the sequence at this place of the lexical order parts from others.

    The prefix that two sequences share is the least that neighbours between them share. Which points are too close to
    the one before depends on shared tokens only, so sequences agree on their common points.
    """
    left, right = accumulate(reversed(neighbours[:place]), min), accumulate(neighbours[place:], min)
    kept = [0]
    for cut in sorted({*left, *right}):
        if cut - kept[-1] >= shortest:
            kept.append(cut)
    return kept


def walk(
    rows: Sequence[Sequence[int]], shareable: Sequence[int], segment_tokens: int, shortest: int = SHORTEST_SHARED
) -> Iterator[Enter | Tail | Leave]:
    """Visit sequences depth-first, tokens that several of them begin with once.

    Args:
        rows: token ids; they need not be extensions of each other, and may be equal.
        shareable: of each sequence, how many tokens from its start may be shared; the rest is in its tail.
        segment_tokens: longest span, at least 3.
        shortest: least number of tokens between two points at which the path forks, at least 2.

    Yields `Enter` and `Leave` like brackets, and one `Tail` per sequence, in lexical order. The spans entered and not
    left, and those of the tail, spell the sequence.

    Raises:
        ValueError: a bound is too small.
    """
    if segment_tokens < 3 or shortest < 2:
        raise ValueError("segments have at least 3 tokens, shared parts at least 2")
    arrays = [np.asarray(row[:count], dtype=np.int64) for row, count in zip(rows, shareable, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: list(rows[i][: shareable[i]]))
    neighbours = [common_prefix(arrays[a], arrays[b]) for a, b in pairwise(order)]
    path: list[Span] = []
    for place, index in enumerate(order):
        shared = neighbours[place - 1] if place else 0
        points = _branch_points(neighbours, place, shortest)
        spans = [span for edge in pairwise(points) for span in even_spans(*edge, segment_tokens)]
        # A fork that is too close to another one can lie inside a cut part: its first spans are not spans of this path.
        while path and (path[-1][1] > shared or path != spans[: len(path)]):
            path.pop()
            yield Leave()
        for span in spans[len(path) :]:
            path.append(span)
            yield Enter(index, span)
        yield Tail(index, even_spans(points[-1], len(rows[index]), segment_tokens))
    for _ in path:
        yield Leave()
