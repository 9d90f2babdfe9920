"""How much of what the model saw do the records hold? Pure arithmetic on token counts.

A provider states for each API message how many tokens its prompt had (`seen`). Ours is counted by another tokenizer, on
what the session holds (`ours`). Within one session both grow by the same text, so

    seen = scale * ours + unseen

where `scale` is the ratio of the two tokenizers, and `unseen` is what the records lack: the system prompt, tools, memory
files. That share is there from the first turn and stays. So a session is judged by what it lacks at its start, and each
turn by how far it is from there: above, the model saw text that the session lost; below, the session holds text that the
model no longer saw (Claude Code cleared old results without saying so).

The scale is the weighted median of the growth ratios of consecutive turns, weighted by our growth: up to half of the
growth may be wrong without moving it far. A session that grows too little to say takes the one of its source.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median, median_low
from typing import Any

from sdft_cli.records.types import record_id_of

LEAST_GROWTH, LEAST_STEPS = 5_000, 8
"""A session's own scale needs so many of our tokens of growth, in so many steps."""
SCALES = (0.5, 2.0)
"""Tokenizers differ by no more than this; a ratio outside is something else."""
START_TURNS = 5
"""A session's start is the median of its first turns with usage, so many of them."""
NOTED, NOTED_SHARE = 8_000, 0.15
"""A turn is noted that lacks so many tokens more than its session's start, and so large a share of its prompt."""
BOUND, BOUND_SHARE = 16_000, 0.3
"""The same, for rejecting it."""
START_BOUND = 64_000
"""A session that lacks more than this from its start is cut."""


@dataclass(frozen=True)
class Turn:
    """A turn whose prompt was counted on both sides: `seen` by the provider, `ours` as the records hold it."""

    index: int
    seen: int
    ours: int


@dataclass(frozen=True)
class Usage:
    """The turns of one session, in order. `dropped`: tokens (ours) that the user had taken out of every prompt."""

    session_id: str
    turns: Sequence[Turn]
    dropped: int = 0


@dataclass(frozen=True)
class Coverage:
    """What one session lacks, in the provider's tokens.

    `unseen` is by turn; `start` is what its first turns lack, without what was dropped on purpose. `off` holds the
    turns that are far from the start: how much they lack beyond it, negative where they hold too much. `refused`: those
    past the bound, with what they lack beyond what is usual. `drops`: how often the prompt shrank below the start.
    """

    session_id: str
    scale: float
    unseen: Mapping[int, int]
    start: int
    off: Mapping[int, int] = field(default_factory=dict)
    refused: Mapping[int, int] = field(default_factory=dict)
    drops: int = 0


def weighted_median(values: Iterable[tuple[float, float]]) -> float:
    """Return the smallest value that has at least half of all weight at or below it; raises ValueError for none.

    Args:
        values: (value, weight above 0).
    """
    ordered = sorted(values)
    half = sum(weight for _, weight in ordered) / 2
    below = 0.0
    for value, weight in ordered:
        below += weight
        if below >= half:
            return value
    raise ValueError("no values")


def growth(turns: Sequence[Turn]) -> list[tuple[float, float]]:
    """Return the ratio of both growths for each step from turn to turn, and our growth as its weight."""
    steps = ((after.seen - before.seen, after.ours - before.ours) for before, after in pairwise(turns))
    return [(seen / ours, float(ours)) for seen, ours in steps if ours > 0]


def scale_of(steps: Sequence[tuple[float, float]], otherwise: float = 1.0) -> float:
    """Return the ratio of the tokenizers by these steps; `otherwise` if they are too few, or it is out of `SCALES`."""
    if len(steps) < LEAST_STEPS or sum(weight for _, weight in steps) < LEAST_GROWTH:
        return otherwise
    found = weighted_median(steps)
    return found if SCALES[0] <= found <= SCALES[1] else otherwise


def _past(gap: int, seen: int, tokens: int, share: float) -> bool:
    return abs(gap) > max(tokens, share * seen)


def coverage_of(usage: Usage, scale: float) -> Coverage:
    """Return what a session with at least one turn lacks, and which of its turns are far from its start."""
    unseen = {turn.index: round(turn.seen - scale * turn.ours) for turn in usage.turns}
    base = round(median(list(unseen.values())[:START_TURNS]))
    start = base - round(scale * usage.dropped)
    cut = start > START_BOUND
    off: dict[int, int] = {}
    refused: dict[int, int] = {}
    drops, low = 0, False
    for turn in usage.turns:
        gap = unseen[turn.index] - base
        if _past(gap, turn.seen, NOTED, NOTED_SHARE):
            off[turn.index] = gap
        if cut or _past(gap, turn.seen, BOUND, BOUND_SHARE):
            refused[turn.index] = start + gap if cut else gap
        drops += not low and off.get(turn.index, 0) < 0
        low = off.get(turn.index, 0) < 0
    return Coverage(usage.session_id, scale, unseen, start, off, refused, drops)


def coverages(sessions: Iterable[Usage]) -> list[Coverage]:
    """Return what each session lacks; sessions without usage are left out."""
    known = [session for session in sessions if session.turns]
    steps = {session.session_id: growth(session.turns) for session in known}
    common = scale_of([step for some in steps.values() for step in some])
    return [coverage_of(session, scale_of(steps[session.session_id], common)) for session in known]


LISTED = 100
"""The manifest names at most so many sessions and turns; the funnel counts all."""


def summary(found: Sequence[Coverage]) -> dict[str, Any] | None:
    """Return what the manifest says of coverage, None if no turn has usage. Tokens are the provider's.

    `turns` with usage lack `median_unseen`; of `sessions`, each (id, turns, what its median turn lacks, scale); `gaps`:
    (record, what it lacks beyond its session's start, negative where it holds too much), the largest first.
    """
    if not found:
        return None
    every = [tokens for c in found for tokens in c.unseen.values()]
    gaps = [(record_id_of(c.session_id, turn), gap) for c in found for turn, gap in c.off.items()]
    return {
        "turns": len(every),
        "median_unseen": median_low(every),
        "sessions": [
            [c.session_id, len(c.unseen), median_low(c.unseen.values()), round(c.scale, 3)] for c in found[:LISTED]
        ],
        "gaps": [list(gap) for gap in sorted(gaps, key=lambda gap: (-abs(gap[1]), gap[0]))[:LISTED]],
    }
