"""How much of what the model saw do the records hold? Pure arithmetic on token counts.

A provider states for each API message how many tokens its prompt had (`seen`). Ours is counted by another tokenizer, on
what the session holds (`ours`). Within one session both grow by the same text, so

    seen = scale * ours + unseen

where `scale` is the ratio of the two tokenizers, and `unseen` is what the records lack: the system prompt, tools,
memory files. That share is there from the first turn and stays. So two things are judged:

- A session, by what it lacks at its start. The model sees a system prompt and tools there, and nothing else that a
  whole file does not hold.
- A turn, by the jumps before it: steps from turn to turn in which the prompt grew by more, or by less, than the text
  between the two could take in any tokenizer. After a jump up the session lost text that the model saw. After a jump
  down it holds text that the model no longer saw (Claude Code cleared old results without saying so). What a turn is
  off by is the sum of the jumps, as far as its distance from the start bears it out: reasoning, which is never counted
  here, comes slowly and goes at once.

The scale is the weighted median of the growth ratios of consecutive turns, weighted by our growth: up to half of the
growth may be wrong without moving it far. A session that grows too little to say takes that of its whole source.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby, pairwise
from statistics import median, median_low
from typing import Any

import numpy as np
import numpy.typing as npt

from sdft_cli.records.types import record_id_of

LEAST_GROWTH, LEAST_STEPS = 5_000, 8
"""A session's own scale needs so many of our tokens of growth, in so many steps."""
SCALES = (0.5, 2.0)
"""Tokenizers differ by no more than this; a ratio outside is something else."""
START_TURNS = 5
"""A session's start is the median of its first turns with usage, so many of them."""
FACTOR = 1.5
"""Text may take this many times the tokens that the scale foretells, or as many times fewer (other languages, code)."""
JUMP = 2_000
"""A step is a jump if it misses that range by more tokens; less is a reminder, an image, or a longer thought."""
NOTED = 8_000
"""A turn that is off by more tokens is noted."""
BOUND, BOUND_SHARE = 16_000, 0.2
"""A turn is refused that is off by more tokens than this, and by a larger share of its prompt."""
USUAL_SESSIONS, USUAL_MARGIN = 4, 20_000
"""In a source of so many sessions, one may lack this much more at its start than a quarter of them do, at the least."""
CONTINUED_MARGIN = 25_000
"""After a compaction Claude Code shows up to five files again, of 5,000 tokens each, and does not write that down."""
LISTED = 100
"""The manifest names at most so many sessions and turns; the funnel counts all."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn whose prompt was counted on both sides: `seen` by the provider, `ours` as the records hold it."""

    index: int
    seen: int
    ours: int


@dataclass(frozen=True)
class Usage:
    """The turns of one session, in order. `dropped`: tokens (ours) that the user had taken out of every prompt.

    `agent`: it is a subagent's, which has other tools. `continued`: it goes on after a compaction.
    """

    session_id: str
    turns: Sequence[Turn]
    dropped: int = 0
    agent: bool = False
    continued: bool = False


@dataclass(frozen=True)
class Coverage:
    """What one session lacks, in the provider's tokens.

    `unseen` is by turn; `start` is what its first turns lack, without what was dropped on purpose. `off` holds the
    turns that are noted: how much they lack beyond the start, negative where they hold too much. `refused`: those past
    a bound, likewise; all turns, with all that they lack, of a session that lacks too much at its start. `drops`: the
    jumps down. `runs`: the noted turns between two jumps, as the first one and how many they are.
    """

    session_id: str
    scale: float
    unseen: Mapping[int, int]
    start: int
    off: Mapping[int, int] = field(default_factory=dict)
    refused: Mapping[int, int] = field(default_factory=dict)
    drops: int = 0
    runs: Sequence[tuple[int, int]] = ()


def weighted_median(values: npt.ArrayLike) -> float:
    """Return the smallest value that has at least half of all weight at or below it; raises ValueError for none.

    Args:
        values: (value, weight above 0).
    """
    pairs = np.reshape(np.asarray(values, dtype=np.float64), (-1, 2))
    if not len(pairs):
        raise ValueError("no values")
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    below = np.cumsum(pairs[:, 1])
    return float(pairs[int(np.argmax(below >= pairs[:, 1].sum() / 2)), 0])


def growth(turns: Sequence[Turn]) -> list[tuple[float, float]]:
    """Return the ratio of both growths for each step from turn to turn, and our growth as its weight."""
    steps = ((after.seen - before.seen, after.ours - before.ours) for before, after in pairwise(turns))
    return [(seen / ours, float(ours)) for seen, ours in steps if ours > 0]


def scale_of(steps: npt.ArrayLike, otherwise: float = 1.0) -> float:
    """Return the ratio of the tokenizers by these steps; `otherwise` if they are too few, or it is out of `SCALES`."""
    steps = np.reshape(np.asarray(steps, dtype=np.float64), (-1, 2))
    if len(steps) < LEAST_STEPS or steps[:, 1].sum() < LEAST_GROWTH:
        return otherwise
    found = weighted_median(steps)
    return found if SCALES[0] <= found <= SCALES[1] else otherwise


def jumps(turns: Sequence[Turn], scale: float) -> list[int]:
    """Return, for each turn, by how much the step to it misses what its text could take; 0 where it is no jump."""
    found = [0] * min(1, len(turns))
    for before, after in pairwise(turns):
        seen, ours = after.seen - before.seen, scale * max(0, after.ours - before.ours)
        excess = round(seen - min(max(seen, ours / FACTOR), ours * FACTOR))
        found.append(excess if abs(excess) > JUMP else 0)
    return found


def _borne_out(jumped: int, distance: int) -> int:
    """Return the smaller of the two if both are to the same side, else 0."""
    return min(jumped, distance, key=abs) if (jumped > 0) == (distance > 0) else 0


def coverage_of(usage: Usage, scale: float) -> Coverage:
    """Return what a session with at least one turn lacks, and which of its turns are off."""
    unseen = {turn.index: round(turn.seen - scale * turn.ours) for turn in usage.turns}
    base = round(median(list(unseen.values())[:START_TURNS]))
    steps = jumps(usage.turns, scale)
    level = dict(zip(unseen, accumulate(steps), strict=True))
    off = {turn: _borne_out(jumped, unseen[turn] - base) for turn, jumped in level.items()}
    refused = {t.index: off[t.index] for t in usage.turns if abs(off[t.index]) > max(BOUND, BOUND_SHARE * t.seen)}
    noted = {index: tokens for index, tokens in off.items() if abs(tokens) > NOTED}
    start = base - round(scale * usage.dropped)
    drops = sum(step < -NOTED for step in steps)
    runs = [(turns[0], len(turns)) for _, some in groupby(noted, level.__getitem__) if (turns := list(some))]
    return Coverage(usage.session_id, scale, unseen, start, noted, refused, drops, runs)


def start_bound(starts: Sequence[int], most: int) -> int:
    """Return how much a session may lack at its start: `most`, or what is usual in the source, with a margin.

    A quarter of the sessions is asked, not half: all those with many tools lack much, but few of those that were cut
    lack little.
    """
    if len(starts) < USUAL_SESSIONS:
        return most
    return max(most, sorted(starts)[(len(starts) - 1) // 4] + USUAL_MARGIN)


def _judged(found: Coverage, bound: int) -> Coverage:
    return replace(found, refused=found.unseen) if found.start > bound else found


def coverages(sessions: Sequence[Usage], most: int) -> Iterator[Coverage]:
    """Yield what each session lacks, in order; sessions without usage are left out. They are gone through three times.

    `most`: tokens that a session may lack at its start (`max_unseen_tokens`).
    """
    common = _common_scale(sessions)

    def alone() -> Iterator[tuple[Coverage, Usage]]:
        for session in sessions:
            if session.turns:
                yield coverage_of(session, scale_of(growth(session.turns), common)), session

    bound = start_bound([c.start for c, session in alone() if not session.agent and not session.continued], most)
    for found, session in alone():
        yield _judged(found, bound + CONTINUED_MARGIN * session.continued)


def _common_scale(sessions: Iterable[Usage]) -> float:
    """Return `scale_of` all steps of a source, of which only the ratios and weights are kept."""
    steps = array("d", (number for session in sessions for step in growth(session.turns) for number in step))
    return scale_of(np.frombuffer(steps, dtype=np.float64).reshape(-1, 2) if steps else np.empty((0, 2)))


def summary(found: Iterable[Coverage]) -> dict[str, Any] | None:
    """Return what the manifest says of coverage, None if no turn has usage. Tokens are the provider's.

    `turns` with usage lack `median_unseen`; of `sessions`, each (id, turns, what its median turn lacks, scale); `gaps`,
    the largest first: (first turn, what it lacks beyond its session's start, negative where it holds too much, to how
    many turns this applies).
    """
    every = array("q")
    sessions: list[list[Any]] = []
    gaps: list[tuple[str, int, int]] = []
    for one in found:
        every.extend(one.unseen.values())
        if len(sessions) < LISTED:
            sessions.append([one.session_id, len(one.unseen), median_low(one.unseen.values()), round(one.scale, 3)])
        gaps += [(record_id_of(one.session_id, turn), one.off[turn], count) for turn, count in one.runs]
        if len(gaps) > 2 * LISTED:
            gaps = _largest(gaps)
    if not every:
        return None
    return {
        "turns": len(every),
        "median_unseen": int(np.sort(np.frombuffer(every, dtype=np.int64))[(len(every) - 1) // 2]),
        "sessions": sessions,
        "gaps": [list(gap) for gap in _largest(gaps)],
    }


def _largest(gaps: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    return sorted(gaps, key=lambda gap: (-abs(gap[1]), gap[0]))[:LISTED]
