"""Which tokens of which trajectories a step trains on, and how much each of them weighs. No model here."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from sdft_cli.config import DistillSettings
from sdft_cli.engine.passes.decode import Rollout


def on_policy_flags(share: float, seed: int, first: int, size: int) -> list[bool]:
    """Say which turns `first`, `first + 1`, ... of a run are trained on the student's own rollout, not on the expert's.

    Over any stretch of the run the number of on-policy turns is `share` times its length, rounded up or down: the
    multiples of `share`, shifted by an offset that depends on the seed, are on-policy where they pass an integer.
    """
    offset = random.Random(f"{seed}:lambda").random()
    return [
        math.floor(offset + (position + 1) * share) > math.floor(offset + position * share)
        for position in range(first, first + size)
    ]


def step_seed(seed: int, step: int, purpose: str) -> int:
    """Return the seed of one use of randomness in one step."""
    return random.Random(f"{seed}:{step}:{purpose}").getrandbits(63)


def loss_range(rollout: Rollout, settings: DistillSettings) -> range:
    """Return the positions of a trajectory that have loss; none if it was cut by the cap and such are masked."""
    if settings.truncated_rollouts == "mask" and not rollout.finished:
        return range(0)
    start = settings.skip_first_tokens
    stop = len(rollout.ids)
    if settings.max_loss_tokens is not None:
        stop = min(stop, start + settings.max_loss_tokens)
    return range(start, max(start, stop))


def token_weights(rollouts: Sequence[Rollout], settings: DistillSettings) -> list[list[float]]:
    """Return the weight of each token of each trajectory in the loss of the step.

    The weights of a step add up to 1 (or are all 0): each token with loss weighs the same (`average: tokens`), or each
    trajectory with loss does, shared by its tokens (`average: sequences`). A list ends behind its last token with loss.
    """
    ranges = [loss_range(rollout, settings) for rollout in rollouts]
    tokens = sum(map(len, ranges))
    sequences = sum(1 for found in ranges if found)

    def weight(found: range) -> float:
        return 1 / tokens if settings.average == "tokens" else 1 / (sequences * len(found))

    return [[0.0] * found.start + [weight(found)] * len(found) if found else [] for found in ranges]
