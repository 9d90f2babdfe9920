"""Which records each optimiser step trains on, in which order, and on whose answers. No model here."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import pairwise

from sdft_cli.config import OptimSettings
from sdft_cli.records import RecordRow


class Order:
    """The order of a run. It depends on the records, the settings and the seed only: a resumed run needs its step.

    `group_by: none`: each epoch is a fresh permutation of all turns, cut into steps of G = `turns_per_step`; a step may
    reach over the end of an epoch.

    `group_by: session`: each epoch's turns are cut into steps first. A session of n turns gives n // G steps of its
    own, and the turns that are left over in all sessions are joined, session by session in a random order, and cut into
    steps of G. Then the steps are permuted; only the last one of an epoch may be short. So each turn is still trained
    once per epoch, and steps of one session are spread over it; what changes is that the turns of one step resemble
    each other, so its gradient is that of fewer sessions. A session's turns are taken `consecutive`, in their order, or
    `spread`: every (n // G)-th turn, so that a step sees the session's beginning and its end.

    `position_decay: d`: as `none`, but an epoch is one turn of each session: its turn t, counted from 0 over the
    session's records, with probability d^t / sum_s d^s (ReOPD, arXiv 2607.04763, with d = 0.6). Early turns come often,
    late ones seldom or never.
    """

    def __init__(self, rows: Sequence[RecordRow], optim: OptimSettings, seed: int) -> None:
        self.rows, self.optim, self.seed = rows, optim, seed
        self._drawn = len(rows) if optim.position_decay is None else len({row.session_id for row in rows})
        self._epoch_number = -1
        self._epoch: list[list[int]] = []

    def step(self, number: int) -> list[int]:
        """Return the turns of optimiser step `number` (from 1): indices of their records."""
        if self.optim.group_by == "none":
            first, size = self.span(number)
            count = self._drawn
            return [self._steps(p // count)[p % count][0] for p in range(first, first + size)]
        epoch, place = self._place(number)
        return self._steps(epoch)[place]

    def span(self, number: int) -> tuple[int, int]:
        """Return how many turns the steps before `number` (from 1) have, and how many it has itself."""
        size, count = self.optim.turns_per_step, len(self.rows)
        if self.optim.group_by == "none":
            return (number - 1) * size, size
        epoch, place = self._place(number)
        return epoch * count + place * size, min(size, count - place * size)

    def _place(self, number: int) -> tuple[int, int]:
        """Return the epoch of a step by session, and its place in the epoch."""
        return divmod(number - 1, -(-len(self.rows) // self.optim.turns_per_step))

    def _steps(self, epoch: int) -> list[list[int]]:
        """Return the steps of an epoch; with `group_by: none`, steps of one turn, to be joined."""
        if epoch != self._epoch_number:
            generator = random.Random(f"{self.seed}:{epoch}")
            if self.optim.group_by == "session":
                self._epoch = self._by_session(generator)
            elif self.optim.position_decay is not None:
                self._epoch = self._by_position(generator, self.optim.position_decay)
            else:
                self._epoch = self._by_turn(generator)
            self._epoch_number = epoch
        return self._epoch

    def _by_turn(self, generator: random.Random) -> list[list[int]]:
        order = list(range(len(self.rows)))
        generator.shuffle(order)
        return [[index] for index in order]

    def _by_position(self, generator: random.Random, decay: float) -> list[list[int]]:
        sessions = list(self._sessions().values())
        generator.shuffle(sessions)
        return [generator.choices(turns, [decay**t for t in range(len(turns))]) for turns in sessions]

    def _by_session(self, generator: random.Random) -> list[list[int]]:
        size = self.optim.turns_per_step
        steps: list[list[int]] = []
        rest: list[int] = []
        sessions = list(self._sessions().values())
        generator.shuffle(sessions)
        for turns in sessions:
            count = len(turns) // size
            whole = turns[: count * size]
            spread = self.optim.session_turns == "spread"
            steps += [whole[i::count] if spread else whole[i * size : (i + 1) * size] for i in range(count)]
            rest += turns[count * size :]
        cut = len(rest) // size * size
        steps += [rest[i : i + size] for i in range(0, cut, size)]
        generator.shuffle(steps)
        return [*steps, rest[cut:]] if rest[cut:] else steps

    def _sessions(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for index in sorted(range(len(self.rows)), key=lambda i: self.rows[i].turn_index):
            found.setdefault(self.rows[index].session_id, []).append(index)
        return {name: found[name] for name in sorted(found)}


def on_policy_flags(
    share: float, seed: int, first: int, size: int, start: float | None = None, over: int = 1
) -> list[bool]:
    """Say which turns `first`, `first + 1`, ... of a run are trained on the student's own rollout, not on the expert's.

    Over any stretch of the run the number of on-policy turns is the sum of their shares, rounded up or down: sums of
    shares up to a turn, shifted by an offset that depends on the seed, make it on-policy where they pass an integer.

    Args:
        share: that of each turn.
        seed: of the run.
        first, size: the stretch, from turn 0 on.
        start: the share of turn 0, from which it moves linearly to `share`; None: it is constant.
        over: turns until it is `share`.
    """
    offset = random.Random(f"{seed}:lambda").random()
    sums = [math.floor(offset + _sum_of_shares(turn, share, start, over)) for turn in range(first, first + size + 1)]
    return [after > before for before, after in pairwise(sums)]


def _sum_of_shares(turns: int, share: float, start: float | None, over: int) -> float:
    """Return the sum of the shares of the first so many turns: of a line, its integral."""
    if start is None:
        return turns * share
    moved = min(turns, over)
    return moved * start + (share - start) * moved**2 / (2 * over) + (turns - moved) * share


def step_seed(seed: int, step: int, purpose: str) -> int:
    """Return the seed of one use of randomness in one step."""
    return random.Random(f"{seed}:{step}:{purpose}").getrandbits(63)
