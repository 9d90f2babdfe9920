"""Which steps are looked at closely: in some the sampler is compared with the trainer, of some rollouts are saved.

What is looked at are the student's own rollouts, which not every step has: of the steps until the next look is due, the
first one that has some is taken. A look at every tenth step would miss them all where every tenth step is off-policy.
"""

from __future__ import annotations

from sdft_cli.config import TrainConfig
from sdft_cli.engine.objective.batches import Order
from sdft_cli.engine.objective.schedules import flags_at


class Looks:
    """Of a run's settings and its order: a resumed run looks at the same steps."""

    def __init__(self, config: TrainConfig, order: Order) -> None:
        self.config, self.order = config, order
        self._before = order.span(config.teacher.start + 1)[0]
        self._taken: dict[tuple[int, int], int] = {}

    def first(self, number: int) -> int:
        """Return how many turns the steps before this one had, without those of `teacher.start`; below 0 in these."""
        return self.order.span(number)[0] - self._before

    def compares(self, number: int) -> bool:
        """Is the sampler compared with the trainer in this step (from 1)? One of `rollout.gap_every`."""
        every = self.config.rollout.gap_every
        if every is None or self.config.lora.dropout > 0:  # whose noise would be taken for a gap
            return False
        due = number - (number - 1) % every
        return number == self._take(due, due + every)

    def saves(self, number: int) -> bool:
        """Are rollouts of this step saved? One of `samples_every`, beginning with step 1, and the last step."""
        every = self.config.samples_every
        due, following = number - number % every, number - number % every + every
        last = number == self.config.optim.max_steps
        return last or number == self._take(max(1, due), following)

    def _take(self, start: int, stop: int) -> int:
        """Return the first step from `start` to before `stop` with a rollout of the student; without one, `start`."""
        if (start, stop) not in self._taken:
            self._taken[start, stop] = self._found(start, stop)
        return self._taken[start, stop]

    def _found(self, start: int, stop: int) -> int:
        steps = range(start, min(stop, self.config.optim.max_steps + 1))
        return next((step for step in steps if any(self._own(step))), start)

    def trajectory(self, number: int) -> int:
        """Return which trajectory of a step is saved: the first that the student samples; without one, the first."""
        own = self._own(number)  # each turn before it is the expert's, which is one trajectory
        return own.index(True) if any(own) else 0

    def _own(self, number: int) -> list[bool]:
        return flags_at(self.config, number, self.first(number), self.order.span(number)[1])
