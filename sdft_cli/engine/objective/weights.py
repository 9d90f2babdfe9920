"""Token weights that depend on what student and teacher think of the tokens (`distill.token_weights`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdft_cli.config import DistillSettings


@dataclass(frozen=True)
class Answers:
    """The trajectories behind the rows of a loss, one after the other: what weights that depend on p and q look at.

    `tokens`: (N,) ids. `lengths`: the rows of each trajectory. `sampled`: whether its tokens are the student's own.
    """

    tokens: Tensor
    lengths: Sequence[int]
    sampled: Sequence[bool]


Weighting = Callable[[Tensor, Tensor, DistillSettings], Tensor]
"""log p_t(y_t) and log q_t(y_t) (T,) of a rollout, settings -> what its token weights are multiplied with (T,)."""


def prefix(log_p: Tensor, log_q: Tensor, settings: DistillSettings) -> Tensor:
    """1 + g (1 - sum_{s<t} a_s / sum_s a_s), with a_s = |log q_s(y_s) - log p_s(y_s)|, g = `prefix_gain`.

    IW-OPD, arXiv 2606.22600 (its g is 0.5): a token counts less, the more of the trajectory's disagreement lies before
    it. The paper weighs a policy gradient of the sampled tokens; here the same weights stand before whole divergences.
    """
    gap = (log_q - log_p).abs()
    total = gap.sum()
    before = torch.cat([gap.new_zeros(1), gap.cumsum(0)[:-1]])
    return 1 + settings.prefix_gain * (1 - before / total.where(total > 0, 1))


WEIGHTINGS: dict[str, Weighting] = {"prefix": prefix}
"""Every weighting of `choices.TOKEN_WEIGHTS`."""


@torch.no_grad()
def reweighted(
    token_weights: Tensor, log_p: Tensor, log_q: Tensor, answers: Answers, settings: DistillSettings
) -> Tensor:
    """Return the weights (N,) of the tokens after `distill.token_weights`; they have no gradient.

    Each trajectory keeps the sum of its weights, so that those of a step still add up to 1. Tokens without loss stay
    so, and count as if student and teacher agreed. On the expert's own turns weights stay as they are: there is no
    prefix of the student's that could be unlike the teacher's.

    Args:
        token_weights: (N,) as from `token_weights`.
        log_p, log_q: (N,) log-probabilities of the tokens in nats, for student and teacher, at `kl_temperature`.
        answers: the trajectories.
        settings: names the weighting.
    """
    parts = [x.split(list(answers.lengths)) for x in (token_weights, log_p, log_q)]
    found = []
    for weights, p, q, sampled in zip(*parts, answers.sampled, strict=True):
        rows = weights.nonzero().squeeze(-1)
        new = weights.clone()
        if sampled and len(rows):
            new[rows] *= WEIGHTINGS[settings.token_weights](p[rows], q[rows], settings).to(new)
            new *= weights.sum() / new.sum()
        found.append(new)
    return torch.cat(found) if found else token_weights
