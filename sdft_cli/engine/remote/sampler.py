"""The rollouts of a step from a server: asked for in time, or a step ahead; each knows how stale its adapter was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from sdft_cli.config import RolloutSettings
from sdft_cli.engine.parallel.processes import ALONE, Processes
from sdft_cli.engine.passes.decode import Rollout
from sdft_cli.engine.passes.decode_steps import row_seeds
from sdft_cli.engine.remote.client import Server
from sdft_cli.engine.remote.completions import PATH, Decoding, request_for, rollout_of
from sdft_cli.engine.remote.flight import Flight
from sdft_cli.engine.remote.handover import Handover


@dataclass(frozen=True)
class Wanted:
    """The rollouts that a step wants of the student: one for each prompt. `seed`: that of the step."""

    step: int
    prompts: list[list[int]]
    settings: RolloutSettings
    seed: int


class RemoteSampler:
    """Asks a server for rollouts; each of several processes for its share of them."""

    def __init__(
        self,
        server: Server,
        handover: Handover,
        stop_ids: Sequence[int],
        words: int,
        processes: Processes = ALONE,
        shared: bool = True,
    ) -> None:
        """Take a server that was looked at (`checks.py`).

        Args:
            server: the server.
            handover: of the adapter.
            stop_ids: any of them ends a rollout.
            words: the size of the vocabulary.
            processes: those that share the run.
            shared: prompts that begin alike are asked for by the same process, as where they are decoded here.
        """
        self.server, self.handover, self.processes = server, handover, processes
        self.stop_ids, self.words, self.shared = stop_ids, words, shared
        self._ahead: tuple[Wanted, Flight[Rollout]] | None = None

    def sample(self, wanted: Wanted) -> list[Rollout]:
        """Return the rollouts of a step, those that were asked for ahead if there are any.

        Raises:
            ServerError: the server did not answer, or not with rollouts of this model.
        """
        ahead, self._ahead = self._ahead, None
        flight = ahead[1] if ahead and ahead[0] == wanted else self._begin(wanted, wanted.step - 1)
        return self.processes.spread(wanted.prompts, lambda mine: flight.results(), self.shared)

    def begin(self, wanted: Wanted, made: int) -> None:
        """Ask for the rollouts of a step to come, after `made` updates; they are waited for by `sample`."""
        self._ahead = (wanted, self._begin(wanted, made))

    def close(self) -> None:
        """Take the adapter back and close the connections; raises nothing."""
        self.handover.take_back()
        self.server.close()

    def _begin(self, wanted: Wanted, made: int) -> Flight[Rollout]:
        if not wanted.prompts:
            return Flight([])
        name = self.handover.bring(made)
        staleness = wanted.step - 1 - self.handover.version
        how = Decoding.of(wanted.settings, self.stop_ids, self.words)
        seeds = row_seeds(wanted.seed, range(len(wanted.prompts)))
        places = self.processes.mine(wanted.prompts, self.shared)
        ask = partial(self._ask, name, how=how, staleness=staleness)
        return Flight([partial(ask, wanted.prompts[i], seeds[i]) for i in places])

    def _ask(self, name: str, prompt: Sequence[int], seed: int, how: Decoding, staleness: int) -> Rollout:
        answer = self.server.post(PATH, request_for(name, prompt, seed, how))
        return rollout_of(answer, prompt, how, self.server.url, staleness)
