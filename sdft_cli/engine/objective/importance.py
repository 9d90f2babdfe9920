"""Weights of rollouts that an older student sampled: what the student thinks of them now against what that one thought.

A divergence at token t of a rollout depends on the tokens before t, and those the older student chose. So what is
weighed is how likely the student is now to come there: per-decision importance sampling (Precup et al., 2000),

    prefix      c_t = min(C, prod_{s<t} p_now(y_s) / p_then(y_s))
    sequence    c_t = min(C, prod_s p_now(y_s) / p_then(y_s))        for every t

truncated at C as in Ionides (2008) and in truncated importance sampling of rollouts (Yao et al., 2025). Untruncated,
each has the expectation of a rollout of the student's own, and `prefix` the smaller variance. The ratio of token t
itself, by which policy gradients are weighed, has the mean 1 at each t: here it would be noise and correct nothing.

Probabilities are those at temperature 1; the ratios are exact where rollouts are sampled at temperature 1 and top-p 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sdft_cli.config import RolloutSettings
from sdft_cli.engine.passes.decode import Rollout


def importance(now: Tensor, then: Tensor, settings: RolloutSettings) -> Tensor:
    """Return the weights (T,) of a rollout's tokens, in float64.

    Args:
        now, then: (T,) log-probabilities of its tokens in nats, by the student as it is and as it was.
        settings: which weights, and C.
    """
    ratios = now.double() - then.to(now.device).double()
    before = ratios.cumsum(0) - ratios if settings.importance == "prefix" else ratios.sum().expand_as(ratios)
    return before.clamp(max=math.log(settings.importance_clip)).exp()


def is_weighed(rollout: Rollout, settings: RolloutSettings) -> bool:
    """Say whether a rollout has such weights: an older student sampled it, and they are on."""
    return rollout.staleness > 0 and settings.importance != "off"


def weighed(
    token_weights: Tensor, now: Tensor, rollouts: Sequence[Rollout], lengths: Sequence[int], settings: RolloutSettings
) -> Tensor:
    """Return the token weights (N,) of some trajectories, times those of `importance` where they are weighed.

    Args:
        token_weights: (N,) as from `formula.token_weights`.
        now: (N,) the student's log-probabilities of the tokens, nats.
        rollouts: the trajectories.
        lengths: how many tokens each of them has in these tensors, from its first on.
        settings: which weights.
    """
    found = []
    for weights, own, y in zip(token_weights.split(list(lengths)), now.split(list(lengths)), rollouts, strict=True):
        if is_weighed(y, settings):
            then = torch.tensor((y.log_probs or [])[: len(own)])
            weights = weights * importance(own, then, settings).to(weights)
        found.append(weights)
    return torch.cat(found) if found else token_weights
