"""How the turns of a step are spread over several cards: by the run's own rule, on the lengths of records alone.

The rule (`engine/parallel/share.py`) takes token ids. A plan has none: turns of a session are taken to extend each
other, so that two of them share the shorter one's prompt, and turns of different sessions to share nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from sdft_cli.engine.parallel.share import cut
from sdft_cli.engine.plan.memory import Lengths
from sdft_cli.records import RecordRow


@dataclass(frozen=True)
class Turn:
    """A turn in its share: its lengths, and how many tokens of its prompt the turn before it there has computed."""

    lengths: Lengths
    known: int = 0


Shares = list[list[Turn]]
"""The turns of each card."""


def spread(
    rows: Sequence[RecordRow], rollout: Callable[[RecordRow], int], count: int, shared: bool
) -> tuple[Shares, Shares]:
    """Return the shares of a step's prompts, which are sampled from, and those of its trajectories, which are scored.

    Args:
        rows: records of the step; one that comes several times has a rollout of its own each time.
        rollout: tokens of a record's rollout.
        count: of cards.
        shared: prefixes are computed once in a share.
    """
    return share_out(rows, rollout, count, shared, answers=False), share_out(rows, rollout, count, shared)


def share_out(
    rows: Sequence[RecordRow], rollout: Callable[[RecordRow], int], count: int, shared: bool, answers: bool = True
) -> Shares:
    """Return the turns of each card, as `spread`; with `answers` by prompt and answer, else by the prompt alone."""
    order = sorted(rows, key=lambda row: (row.session_id, row.prompt_tokens))
    common = [0, *(_common(a, b) if shared else 0 for a, b in pairwise(order))]
    whole = [row.prompt_tokens + rollout(row) * answers for row in order]
    added = [size - known for size, known in zip(whole, common, strict=True)]
    turns = [Lengths(row.prompt_tokens, row.teacher_prompt_tokens, rollout(row)) for row in order]
    return [
        [Turn(turns[i], common[i] if place else 0) for place, i in enumerate(stretch)]
        for stretch in cut(whole, added, count)
    ]


def _common(first: RecordRow, second: RecordRow) -> int:
    return min(first.prompt_tokens, second.prompt_tokens) if first.session_id == second.session_id else 0


def tokens_of(share: Sequence[Turn]) -> int:
    """Return the tokens of prompts and answers that a card computes for its share."""
    return sum(turn.lengths.student - turn.known + turn.lengths.rollout for turn in share)


def largest_part(rows: Sequence[RecordRow], rollout: Callable[[RecordRow], int], count: int, shared: bool) -> float:
    """Return the tokens of the largest share, as a part of those that one card would compute for all."""
    if not rows:
        return 1.0
    largest = max(map(tokens_of, share_out(rows, rollout, count, shared)))
    return largest / tokens_of(share_out(rows, rollout, 1, shared)[0])
