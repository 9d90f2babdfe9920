"""What is minimised, in plain torch. `loss.py` computes the same value and gradient, a few rows of logits at a time.

    loss = sum_t w_t D(p_t, q_t)        p = softmax(head(h_student) / T), q = softmax(head(h_teacher) / T)

w_t is the weight of a trajectory's token (`token_weights`), D a divergence (`FORMULAS`). Outcomes o are the tokens of
the vocabulary; or the top-k tokens, and one more outcome for all the others. SDFT, arXiv 2601.19897, eq. 3 (direction:
docs/design.md); jsd: GKD, arXiv 2306.13649, eq. 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sdft_cli.config import DistillSettings
from sdft_cli.engine.models.head import Head
from sdft_cli.engine.passes.decode import Rollout


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


Formula = Callable[[Tensor, Tensor, DistillSettings], Tensor]
"""log p and log q (R, O), settings -> D(p, q) of each row (R,) in nats."""


def reverse_kl(log_p: Tensor, log_q: Tensor, settings: DistillSettings) -> Tensor:
    """KL(p||q) = sum_o p_o log(p_o / q_o)."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def forward_kl(log_p: Tensor, log_q: Tensor, settings: DistillSettings) -> Tensor:
    """KL(q||p) = sum_o q_o log(q_o / p_o)."""
    return (log_q.exp() * (log_q - log_p)).sum(-1)


def jsd(log_p: Tensor, log_q: Tensor, settings: DistillSettings) -> Tensor:
    """b KL(q||M) + (1 - b) KL(p||M), with M = b q + (1 - b) p."""
    b = settings.jsd_beta
    log_m = torch.logaddexp(log_q + math.log(b), log_p + math.log(1 - b))
    return b * reverse_kl(log_q, log_m, settings) + (1 - b) * reverse_kl(log_p, log_m, settings)


FORMULAS: dict[str, Formula] = {"reverse_kl": reverse_kl, "forward_kl": forward_kl, "jsd": jsd}
"""Every divergence of `choices.DIVERGENCES`."""


def top_k_outcomes(student: Tensor, teacher: Tensor, settings: DistillSettings) -> tuple[Tensor, Tensor]:
    """Return the logits (R, K) of the top-k tokens of one role, for both roles; with the tail, (R, K + 1)."""
    tokens = (student if settings.top_k_of == "student" else teacher).topk(settings.top_k, -1).indices

    def outcomes(logits: Tensor) -> Tensor:
        others = logits.scatter(-1, tokens, -torch.inf).logsumexp(-1, keepdim=True)
        return torch.cat([logits.gather(-1, tokens), others][: 1 + settings.top_k_tail], -1)

    return outcomes(student), outcomes(teacher)


def plain_loss(
    student: Tensor, teacher: Tensor, head: Head, token_weights: Tensor, settings: DistillSettings
) -> Tensor:
    """Return the loss of `loss.distillation_loss` (same arguments), differentiable, with all logits in memory."""
    z_student, z_teacher = (head.logits(states) / settings.kl_temperature for states in (student, teacher))
    if settings.support == "top_k" and settings.top_k < head.words:
        z_student, z_teacher = top_k_outcomes(z_student, z_teacher, settings)
    log_p, log_q = z_student.log_softmax(-1), z_teacher.log_softmax(-1)
    return torch.dot(token_weights, FORMULAS[settings.divergence](log_p, log_q, settings))
