"""What is minimised, in plain torch. `loss.py` computes the same value and gradient, a few rows of logits at a time.

    loss = sum_t w_t D(p_t, q_t)        p = softmax(head(h_student) / T), q = softmax(head(h_teacher) / T)

w_t is the weight of a trajectory's token (`token_weights`; `weights.py` has those that depend on p and q), D a
divergence (`FORMULAS`): a sum over outcomes o. Those are the tokens of the vocabulary; or the top-k tokens, and one
more outcome for all the others. SDFT, arXiv 2601.19897, eq. 3 (direction: docs/design.md); other papers: see below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sdft_cli.config import DistillSettings
from sdft_cli.engine.models.head import Head
from sdft_cli.engine.objective.weights import Answers, reweighted
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
"""log p and log q (R, O), settings -> the terms (R, O) whose sum over outcomes is D(p, q) of a row, in nats."""


def reverse_kl(log_p: Tensor, log_q: Tensor, settings: DistillSettings) -> Tensor:
    """KL(p||q) = sum_o p_o log(p_o / q_o)."""
    return log_p.exp() * (log_p - log_q)


def forward_kl(log_p: Tensor, log_q: Tensor, settings: DistillSettings) -> Tensor:
    """KL(q||p) = sum_o q_o log(q_o / p_o)."""
    return log_q.exp() * (log_q - log_p)


def jsd(log_p: Tensor, log_q: Tensor, settings: DistillSettings) -> Tensor:
    """b KL(q||M) + (1 - b) KL(p||M), with M = b q + (1 - b) p: GKD, arXiv 2306.13649, eq. 1."""
    b = settings.jsd_beta
    log_m = torch.logaddexp(log_q + math.log(b), log_p + math.log(1 - b))
    return b * reverse_kl(log_q, log_m, settings) + (1 - b) * reverse_kl(log_p, log_m, settings)


def mixed_kl(log_p: Tensor, log_q: Tensor, settings: DistillSettings) -> Tensor:
    """a KL(q||p) + (1 - a) KL(p||q), with a = `kl_mix`; at 1/2, half of Jeffreys' divergence."""
    a = settings.kl_mix
    return a * forward_kl(log_p, log_q, settings) + (1 - a) * reverse_kl(log_p, log_q, settings)


def entropy_aware_kl(log_p: Tensor, log_q: Tensor, settings: DistillSettings) -> Tensor:
    """KL(p||q) + [H(q) > tau] KL(q||p), with tau = `entropy_threshold`: EOPD, arXiv 2603.07079.

    The paper adds the second one, with weight 1 and tau = 0.8 nats, to a sampled estimate of the first, and takes it
    over the teacher's top 16 tokens; here both are whole sums over the outcomes, and so is H.
    """
    unsure = -(log_q.exp() * log_q).sum(-1, keepdim=True) > settings.entropy_threshold
    return reverse_kl(log_p, log_q, settings) + unsure * forward_kl(log_p, log_q, settings)


FORMULAS: dict[str, Formula] = {
    "reverse_kl": reverse_kl,
    "forward_kl": forward_kl,
    "jsd": jsd,
    "mixed_kl": mixed_kl,
    "entropy_aware_kl": entropy_aware_kl,
}
"""Every divergence of `choices.DIVERGENCES`."""


def divergence(log_p: Tensor, log_q: Tensor, settings: DistillSettings) -> Tensor:
    """Return D(p, q) of each row (R,), in nats: sum_o min(d_o, c), with c = `token_clip`, or without a clip.

    What is clipped is the term d_o of one outcome at one position, from above only, as do OPSD's `jsd_token_clip`
    (arXiv 2601.18734, its code) and miles' `opsd_kl_clip`, at 0.05 to 0.06. A clipped term has no gradient; those of
    the others are as ever. With C the teacher's probability of all clipped outcomes, the gradient of KL(q||p) in the
    student's logits is p_o (1 - C) - q_o, and p_o (1 - C) at a clipped one: where the teacher is sure of a token that
    the student finds unlikely, nothing pulls the student there. Terms may be negative, and so may clipped sums.
    """
    terms = FORMULAS[settings.divergence](log_p, log_q, settings)
    return (terms if settings.token_clip is None else terms.clamp(max=settings.token_clip)).sum(-1)


def top_k_outcomes(student: Tensor, teacher: Tensor, settings: DistillSettings) -> tuple[Tensor, Tensor]:
    """Return the logits (R, K) of the top-k tokens of one role, for both roles; with the tail, (R, K + 1)."""
    tokens = (student if settings.top_k_of == "student" else teacher).topk(settings.top_k, -1).indices

    def outcomes(logits: Tensor) -> Tensor:
        others = logits.scatter(-1, tokens, -torch.inf).logsumexp(-1, keepdim=True)
        return torch.cat([logits.gather(-1, tokens), others][: 1 + settings.top_k_tail], -1)

    return outcomes(student), outcomes(teacher)


def plain_loss(
    student: Tensor,
    teacher: Tensor,
    head: Head,
    token_weights: Tensor,
    settings: DistillSettings,
    answers: Answers | None = None,
) -> Tensor:
    """Return the loss of `loss.distillation_loss` (same arguments), differentiable, with all logits in memory."""
    z_student, z_teacher = (head.logits(states) / settings.kl_temperature for states in (student, teacher))
    if settings.token_weights != "none":
        assert answers is not None
        chosen = answers.tokens.unsqueeze(-1)
        of_tokens = [z.detach().log_softmax(-1).gather(-1, chosen).squeeze(-1) for z in (z_student, z_teacher)]
        token_weights = reweighted(token_weights, of_tokens[0], of_tokens[1], answers, settings)
    if settings.support == "top_k" and settings.top_k < head.words:
        z_student, z_teacher = top_k_outcomes(z_student, z_teacher, settings)
    return torch.dot(token_weights, divergence(z_student.log_softmax(-1), z_teacher.log_softmax(-1), settings))
