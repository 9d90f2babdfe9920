"""Reverse KL(student||teacher) over the whole vocabulary, from hidden states, a few rows of logits at a time.

With z = h W^T / T, p = softmax(z_student), q = softmax(z_teacher) and d = log p - log q:

    KL(p||q) = sum_v p_v d_v            dKL/dz_v = p_v (d_v - KL)            dKL/dh = (dKL/dz) W / T

so the gradient of a chunk is known as soon as its loss is, and neither logits nor an autograd graph outlive the chunk.
The head W is frozen under LoRA and gets no gradient. SDFT, arXiv 2601.19897, eq. 3 (direction: docs/design.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class KLOutput:
    """`loss`: scalar, differentiable in the student's hidden states. `per_token`: (N,), detached, KL in nats."""

    loss: Tensor
    per_token: Tensor


def _chunk_kl(student: Tensor, teacher: Tensor, weight: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return KL per row (R,) and its gradient in the student's logits over T (R, V), both fp32."""
    log_p = torch.mm(student, weight.T).float().div_(temperature)
    log_q = torch.mm(teacher, weight.T).float().div_(temperature)
    log_p.sub_(log_p.logsumexp(-1, keepdim=True))
    log_q.sub_(log_q.logsumexp(-1, keepdim=True))
    d = torch.sub(log_p, log_q, out=log_q)
    # When p is nearly one-hot, d - sum(p d) cancels to noise: measure d from its value at the mode.
    at_mode = d.gather(-1, log_p.argmax(-1, keepdim=True))
    d.sub_(at_mode)
    p = log_p.exp_()
    mean = torch.linalg.vecdot(p, d).unsqueeze(-1)
    kl = (mean + at_mode).squeeze(-1)
    return kl, d.sub_(mean).mul_(p)


class _ChunkedReverseKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        weight: Tensor,
        token_weights: Tensor,
        temperature: float,
        chunk_rows: int,
    ) -> tuple[Tensor, Tensor]:
        gradient = torch.zeros_like(student)
        per_token = torch.zeros(len(student), dtype=torch.float32, device=student.device)
        rows = token_weights.nonzero().squeeze(-1)
        for chunk in rows.split(chunk_rows):
            kl, dz = _chunk_kl(student[chunk], teacher[chunk], weight, temperature)
            per_token[chunk] = kl
            dz.mul_(token_weights[chunk].unsqueeze(-1).float() / temperature)
            gradient[chunk] = torch.mm(dz.to(weight.dtype), weight).to(gradient.dtype)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(per_token)
        return torch.dot(per_token, token_weights.float()), per_token

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * outputs[0].to(gradient.dtype), None, None, None, None, None


def chunked_reverse_kl(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor,
    token_weights: Tensor,
    temperature: float = 1.0,
    chunk_rows: int = 256,
) -> KLOutput:
    """Return the weighted sum of KL(student||teacher) over tokens.

    Args:
        student: (N, H) hidden states of the student at the positions that predict the rollout's tokens.
        teacher: (N, H) hidden states of the teacher at the same tokens; no gradient flows into them.
        weight: (V, H) the frozen output head, shared by both.
        token_weights: (N,) weight of each token, e.g. 1/count; rows of weight 0 are not computed, and their loss and
            gradient are exactly 0.
        temperature: both distributions are softened by it, > 0.
        chunk_rows: rows of logits held at once.

    Raises:
        ValueError: shapes do not match.
    """
    if student.shape != teacher.shape or student.shape[1] != weight.shape[1] or len(token_weights) != len(student):
        raise ValueError(
            f"shapes do not match: student {tuple(student.shape)}, teacher {tuple(teacher.shape)}, "
            f"weight {tuple(weight.shape)}, token_weights {tuple(token_weights.shape)}"
        )
    loss, per_token = _ChunkedReverseKL.apply(
        student, teacher.detach(), weight.detach(), token_weights, temperature, chunk_rows
    )
    return KLOutput(loss, per_token)


@torch.no_grad()
def token_log_likelihood(hidden: Tensor, weight: Tensor, targets: Tensor, chunk_rows: int = 256) -> Tensor:
    """Return log p(target) in nats for each row.

    Args:
        hidden: (N, H) hidden states at the positions that predict `targets`.
        weight: (V, H) output head.
        targets: (N,) token ids.
    """
    found = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    for rows in torch.arange(len(hidden), device=hidden.device).split(chunk_rows):
        logits = torch.mm(hidden[rows], weight.T).float()
        chosen = logits.gather(-1, targets[rows].unsqueeze(-1)).squeeze(-1)
        found[rows] = chosen - logits.logsumexp(-1)
    return found
