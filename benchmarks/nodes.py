"""The arithmetic of `simulate_nodes`: the step of one process, divided over many that wait for the slowest.

A step ends for all when the last rank has sampled its prompts, again when the last one has scored its turns, and when
the adapter's gradients went round the ring. What every rank does for itself (reading prompts, the update) stays.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sdft_cli.engine.plan.network import Ring

DIVISION = {
    "prefill": "sampling",
    "decode": "decoding",
    "teacher": "turns",
    "student": "turns",
    "loss": "turns",
    "backward": "turns",
    "scoring": "turns",
}
"""By what a phase is divided; a phase that is not here every rank does whole. `rollout` is told by the caller."""
LIMITS = ("the largest share", "what every rank does", "the network", "stragglers")


@dataclass(frozen=True)
class Division:
    """For each rank, its part of what one process does: of the tokens of sampling, of the steps of decoding, of the
    turns' tokens."""

    sampling: Sequence[float]
    decoding: Sequence[float]
    turns: Sequence[float]


@dataclass(frozen=True)
class MeasuredStep:
    """A step of one process: the seconds of its phases, how it divides over so many ranks, and its turns.

    `sent`: bytes of the rollouts, which all ranks get.
    """

    seconds: Mapping[str, float]
    divide: Callable[[int], Division]
    turns: int
    sent: float = 0.0


@dataclass(frozen=True)
class Cluster:
    """What the ranks are in: bytes per second and seconds of a hop inside a machine and between machines."""

    per_node: int
    link: float
    network: float
    hop: float
    network_hop: float

    def ring(self, count: int) -> Ring:
        """Return the ring of so many ranks: between machines the slower of link and network counts."""
        if count <= self.per_node:
            return Ring(count, self.link, self.hop)
        return Ring(count, min(self.link, self.network), max(self.hop, self.network_hop))


@dataclass(frozen=True)
class Scale:
    """What steps take on average on so many ranks, and what of it is not the time of one process over their number."""

    count: int
    seconds: float
    one: float
    lost: Mapping[str, float]
    """Seconds by what they are lost to (`LIMITS`)."""
    working: float
    """Ranks with a turn."""
    largest: float
    """The largest share's part of the turns' tokens."""
    turns: float

    @property
    def faster(self) -> float:
        return self.one / self.seconds

    @property
    def efficiency(self) -> float:
        return self.faster / self.count

    @property
    def limit(self) -> str:
        return max(LIMITS, key=lambda name: self.lost[name])


def slowness(count: int, spread: float, key: str) -> list[float]:
    """Return by which factor each rank is slower in a step: exp(spread x |z|), z normal; one rank is as measured."""
    if count == 1 or not spread:
        return [1.0] * count
    return [math.exp(spread * abs(random.Random(f"{key}:{rank}").gauss(0, 1))) for rank in range(count)]


def step_seconds(
    step: MeasuredStep, count: int, rollout: str, slow: Sequence[float], division: Division
) -> tuple[float, float]:
    """Return the seconds until all have computed what is divided, and those of what every rank does.

    Args:
        rollout: by what the phase `rollout` of a run is divided: `decoding`, or `sampling`.
        slow: factor of each rank.
    """
    by = {**DIVISION, "rollout": rollout}
    phases: dict[bool, list[float]] = {True: [0.0] * count, False: [0.0] * count}
    same = 0.0
    for name, seconds in step.seconds.items():
        if name not in by:
            same += seconds
            continue
        parts = getattr(division, by[name])
        ranks = phases[by[name] == "turns"]
        for rank in range(count):
            ranks[rank] += seconds * parts[rank]
    divided = sum(max(a * b for a, b in zip(slow, ranks, strict=True)) for ranks in phases.values())
    return divided, same * max(slow)


def scale(
    steps: Sequence[MeasuredStep], count: int, ring: Ring, gradients: float, rollout: str, spread: float, seed: int
) -> Scale:
    """Return what these steps take on so many ranks, on average.

    Args:
        steps: of one process.
        ring: of the ranks.
        gradients: bytes that are added up in each step.
        rollout: as `step_seconds`.
        spread: of the ranks' slowness; 0: all are as fast as the one that was measured.
        seed: of that slowness.
    """
    lost, total, one, working, largest = dict.fromkeys(LIMITS, 0.0), 0.0, 0.0, 0.0, 0.0
    for number, step in enumerate(steps):
        division = step.divide(count)
        slow = slowness(count, spread, f"{seed}:{number}")
        network = ring.all_reduce(gradients) + ring.all_gather(step.sent)
        even = step_seconds(step, count, rollout, [1.0] * count, division)
        found = sum(step_seconds(step, count, rollout, slow, division))
        alone = sum(step.seconds.values())
        lost["what every rank does"] += even[1] - even[1] / count
        lost["the largest share"] += even[0] - (alone - even[1]) / count
        lost["stragglers"] += found - sum(even)
        lost["the network"] += network
        total, one = total + found + network, one + alone
        working, largest = working + sum(part > 0 for part in division.turns), largest + max(division.turns)
    n = len(steps)
    means = {name: value / n for name, value in lost.items()}
    return Scale(count, total / n, one / n, means, working / n, largest / n, sum(s.turns for s in steps) / n)


def sentence(scales: Sequence[Scale], worth: float = 1.2) -> str:
    """Say in a sentence up to where more ranks are worth it, and why not further.

    Args:
        scales: by growing number of ranks, at least one.
        worth: more ranks are worth it where they make a step so many times as fast as the number before.
    """
    last = scales[0]
    for following in scales[1:]:
        if last.seconds / following.seconds < worth:
            return f"It stops scaling at {_told(last)}: {_told(following)}, since {_why(following)}."
        last = following
    return f"It scales up to {_told(last)}; most is lost since {_why(last)}."


def _told(at: Scale) -> str:
    return f"{at.count} GPU{'s' * (at.count > 1)} ({at.faster:.1f} times as fast as one)"


def _why(at: Scale) -> str:
    if at.limit == "the network":
        return "what goes through the network takes as long with any number of them"
    if at.limit == "stragglers":
        return "all wait for the slowest"
    if at.limit == "what every rank does":
        return "every rank reads all prompts and makes the whole update"
    few = f"{at.turns:g} turn{'s' * (at.turns != 1)} a step cannot feed {at.count} ranks"
    why = few if at.turns < at.count else "no turn is divided, and the longest one is a share of its own"
    return f"{why}: {at.working:.1f} ranks have work, and the largest share is {at.largest:.0%} of a step's tokens"


def table(scales: Sequence[Scale]) -> str:
    """Return the lines of a Markdown table."""
    head = "| GPUs | step, s | times as fast | efficiency | ranks with work | largest share | limited by |"
    lines = [head, "| ---: | ---: | ---: | ---: | ---: | ---: | --- |"]
    for at in scales:
        limit = at.limit if at.count > 1 else ""
        cells = (at.count, f"{at.seconds:.3f}", f"{at.faster:.2f}", f"{at.efficiency:.0%}", f"{at.working:.1f}")
        lines.append("| " + " | ".join(map(str, (*cells, f"{at.largest:.0%}", limit))) + " |")
    return "\n".join(lines)
