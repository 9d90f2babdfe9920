"""The loss of `formula.py` from hidden states, a few rows of logits at a time, with its gradient.

With g_o = dD/dp_o up to a constant, the gradient in the student's logits z and hidden states h is

    dz_o = p_o (g_o - sum_i p_i g_i)        dh = (dz * slope) W * scale / T

    reverse_kl   g_o = log(p_o / q_o)
    forward_kl   g_o = -q_o / p_o
    jsd          g_o = (1 - b) log(p_o / M_o)

(of a weighted sum of divergences, the same sum of these) and is known as soon as the value is: neither logits nor an
autograd graph outlive a chunk. Five divergences are written out (`FUSED`); any other one, and any with a clip, goes
through autograd of its formula, chunk by chunk. Weights that depend on p and q are known when all rows were seen; then
the rows of the gradient are multiplied once more. The head (`Head`: W, scale, and
the slope of its cap, 1 without one) is frozen under LoRA and gets no gradient.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sdft_cli.config import DistillSettings
from sdft_cli.engine.models.head import Head
from sdft_cli.engine.objective import formula
from sdft_cli.engine.objective.weights import Answers, reweighted

LOGITS_PER_BLOCK = 1 << 17
"""Logits that go through a divergence at once on a CPU: its dozen passes over them stay in the cache."""

LARGEST_EXPONENT = 80.0
"""exp of it is finite in fp32, and next to it 1 is rounded away."""


@dataclass(frozen=True)
class LossOutput:
    """`loss`: scalar, differentiable in the student's hidden states. `per_token`: (N,), detached, in nats."""

    loss: Tensor
    per_token: Tensor


Chunk = Callable[[Tensor, bool], tuple[Tensor, Tensor | None]]
"""Rows (R,) and whether the gradient is wanted -> value (R,) in nats and its gradient (R, H), before token weights."""


class _KnownGradient(torch.autograd.Function):
    """A value whose gradient was computed together with it."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None


def _sum_over_chunks(
    student: Tensor,
    token_weights: Tensor,
    chunk_rows: int,
    chunk: Chunk,
    final_weights: Callable[[], Tensor] | None = None,
) -> LossOutput:
    """Add up a loss over the rows whose weight is not 0; `final_weights` says other weights of theirs in the end."""
    wanted = student.requires_grad and torch.is_grad_enabled()
    with torch.no_grad():
        per_token = torch.zeros(len(student), dtype=torch.float32, device=student.device)
        gradient = torch.zeros_like(student) if wanted else None
        for rows in token_weights.nonzero().squeeze(-1).split(chunk_rows):
            value, found = chunk(rows, wanted)
            per_token[rows] = value
            if gradient is not None and found is not None:
                gradient[rows] = (found * token_weights[rows].unsqueeze(-1)).to(gradient.dtype)
        if final_weights is not None:
            final = final_weights()
            if gradient is not None:
                gradient.mul_((final / token_weights.where(token_weights > 0, 1)).unsqueeze(-1))
            token_weights = final
        loss = torch.dot(per_token, token_weights.float())
    if gradient is not None:
        loss = _KnownGradient.apply(student, loss, gradient)
    return LossOutput(loss, per_token)


def _buffer(rows: int, head: Head) -> Tensor:
    return torch.empty(rows, head.words, dtype=torch.float32, device=head.weight.device)


def _from_largest_(logits: Tensor) -> Tensor:
    """Count logits (R, O) from each row's largest, in place: it becomes 0."""
    return logits.sub_(logits.amax(-1, keepdim=True))


def _softmax(logits: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Return probabilities, in `out`, and log sum_o exp(logits) (R, 1), for logits from `_from_largest_`."""
    p = torch.exp(logits, out=out)
    total = p.sum(-1, keepdim=True)
    return p.div_(total), total.log_()


def _dot(a: Tensor, b: Tensor, scratch: Tensor) -> Tensor:
    """Return sum_o a b (R, 1). torch's vecdot would allocate the products."""
    return torch.mul(a, b, out=scratch).sum(-1, keepdim=True)


def _through_softmax_(p: Tensor, g: Tensor) -> Tensor:
    """Return sum p g (R, 1); p (g - sum p g) replaces g.

    When p is nearly one-hot, the difference at the mode is rounding noise of g's size. The differences sum to 0 over
    the tokens, and the noise is the only part of their sum that is not small, so their sum is taken off again.
    """
    mean = g.mul_(p).sum(-1, keepdim=True)
    g.addcmul_(p, mean, value=-1.0)
    rest = g.sum(-1, keepdim=True)
    g.addcmul_(p, rest, value=-1.0)
    return mean


def _reverse_kl(
    student: Tensor, teacher: Tensor, spare: Sequence[Tensor], settings: DistillSettings, wanted: bool
) -> Tensor:
    log_zq = torch.exp(teacher, out=spare[0]).sum(-1, keepdim=True).log_()
    d = torch.sub(student, teacher, out=teacher)
    p, log_zp = _softmax(student, student)
    mean = _through_softmax_(p, d) if wanted else _dot(p, d, d)
    return mean + (log_zq - log_zp)


def _forward_kl(
    student: Tensor, teacher: Tensor, spare: Sequence[Tensor], settings: DistillSettings, wanted: bool
) -> Tensor:
    d = torch.sub(student, teacher, out=spare[0])
    (p, log_zp), (q, log_zq) = _softmax(student, student), _softmax(teacher, teacher)
    value = -_dot(q, d.add_(log_zq - log_zp), d)
    if wanted:
        dz = torch.sub(p, q, out=teacher)
        # It sums to 0. Where p and q are both nearly 1, their difference is noise that the other tokens' sum has not.
        dz.addcmul_(p, dz.sum(-1, keepdim=True), value=-1.0)
    return value


def _log_mixture_(log_ratio: Tensor, share: float) -> Tensor:
    """Return log(share * exp(log_ratio) + 1 - share), in place."""
    return log_ratio.clamp_(max=LARGEST_EXPONENT).exp_().mul_(share).add_(1 - share).log_()


def _jsd(student: Tensor, teacher: Tensor, spare: Sequence[Tensor], settings: DistillSettings, wanted: bool) -> Tensor:
    beta = settings.jsd_beta
    d, scratch = torch.sub(student, teacher, out=spare[0]), spare[1]
    (p, log_zp), (q, log_zq) = _softmax(student, student), _softmax(teacher, teacher)
    d.add_(log_zq - log_zp)
    value = -beta * _dot(q, _log_mixture_(scratch.copy_(d), 1 - beta), scratch)
    g = _log_mixture_(torch.neg(d, out=teacher), beta).mul_(beta - 1)
    return value + (_through_softmax_(p, g) if wanted else _dot(p, g, g))


def _both_kls(
    student: Tensor, teacher: Tensor, spare: Sequence[Tensor], forward: Tensor | float, reverse: float, wanted: bool
) -> Tensor:
    """Return forward * KL(q||p) + reverse * KL(p||q); the weights are numbers, or (R, 1)."""
    d, scratch = torch.sub(student, teacher, out=spare[0]), spare[1]
    (p, log_zp), (q, log_zq) = _softmax(student, student), _softmax(teacher, teacher)
    d.add_(log_zq - log_zp)
    value = -forward * _dot(q, d, scratch)
    if not wanted:
        return value + reverse * _dot(p, d, d)
    dz = torch.sub(p, q, out=teacher)
    dz.addcmul_(p, dz.sum(-1, keepdim=True), value=-1.0).mul_(forward)  # as in `_forward_kl`
    value = value + reverse * _through_softmax_(p, d)
    dz.add_(d, alpha=reverse)
    return value


def _mixed_kl(
    student: Tensor, teacher: Tensor, spare: Sequence[Tensor], settings: DistillSettings, wanted: bool
) -> Tensor:
    return _both_kls(student, teacher, spare, settings.kl_mix, 1 - settings.kl_mix, wanted)


def _entropy_aware_kl(
    student: Tensor, teacher: Tensor, spare: Sequence[Tensor], settings: DistillSettings, wanted: bool
) -> Tensor:
    q, log_z = _softmax(teacher, spare[0])
    unsure = log_z - _dot(q, teacher, spare[1]) > settings.entropy_threshold
    return _both_kls(student, teacher, spare, unsure.float(), 1.0, wanted)


def _by_autograd(
    student: Tensor, teacher: Tensor, spare: Sequence[Tensor], settings: DistillSettings, wanted: bool
) -> Tensor:
    with torch.set_grad_enabled(wanted):
        logits = student.clone().requires_grad_(wanted)
        value = formula.divergence(logits.log_softmax(-1), teacher.log_softmax(-1), settings)
        if wanted:
            (gradient,) = torch.autograd.grad(value.sum(), logits)
            teacher.copy_(gradient)
    return value.detach().unsqueeze(-1)


FUSED = {
    "reverse_kl": (_reverse_kl, 1),
    "forward_kl": (_forward_kl, 1),
    "jsd": (_jsd, 2),
    "mixed_kl": (_mixed_kl, 2),
    "entropy_aware_kl": (_entropy_aware_kl, 2),
}
"""Divergences with value and gradient written out in place, and how many spare buffers each needs."""

AUTOGRAD_BUFFERS = 12
"""Buffers of a row's logits that autograd of the formulas here holds at once, at most: those of jsd."""


def _divergence(
    student: Tensor, teacher: Tensor, spare: Sequence[Tensor], settings: DistillSettings, wanted: bool
) -> Tensor:
    """Return the divergence (R,) of distributions given by logits (R, O).

    Its gradient in the student's logits replaces `teacher`, where it is wanted. `student` and `spare`, buffers of
    their shape (`spare_buffers` of them), are overwritten.
    """
    compute = FUSED[settings.divergence][0] if _is_fused(settings) else _by_autograd
    return compute(_from_largest_(student), _from_largest_(teacher), spare, settings, wanted).squeeze(-1)


def _split_tail_(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits (R, K + 1) of the chosen tokens and of all others as one, and each other token's share (R, V).

    The shares replace `logits`. The last logit is a logsumexp over the others: 1 - sum would cancel.
    """
    chosen = logits.gather(-1, tokens)
    logits.scatter_(-1, tokens, -torch.inf)
    largest = logits.amax(-1, keepdim=True)
    shares, log_z = _softmax(logits.sub_(largest), logits)
    return torch.cat([chosen, largest + log_z], -1), shares


def _top_k_divergence(
    student: Tensor, teacher: Tensor, spare: Sequence[Tensor], settings: DistillSettings, wanted: bool
) -> Tensor:
    """Return the divergence (R,) over the top-k tokens, with or without their tail; else as `_divergence`.

    `spare` is not needed.
    """
    ranked = student if settings.top_k_of == "student" else teacher
    tokens = ranked.topk(settings.top_k, dim=-1, sorted=False).indices
    if settings.top_k_tail:
        # From the largest logit, so that adding the tail's logarithm rounds little.
        few_student, shares = _split_tail_(_from_largest_(student), tokens)
        few_teacher, _ = _split_tail_(_from_largest_(teacher), tokens)
    else:
        few_student, few_teacher = student.gather(-1, tokens), teacher.gather(-1, tokens)
    value = _divergence(few_student, few_teacher, [torch.empty_like(few_student) for _ in range(2)], settings, wanted)
    if wanted and settings.top_k_tail:
        torch.mul(shares, few_teacher[:, -1:], out=teacher).scatter_(-1, tokens, few_teacher[:, :-1])
    elif wanted:
        teacher.zero_().scatter_(-1, tokens, few_teacher)
    return value


def _log_probs_of(logits: Tensor, tokens: Tensor, scratch: Tensor) -> Tensor:
    """Return log softmax(logits) (R,) at one token of each row."""
    largest = logits.amax(-1, keepdim=True)
    log_z = torch.sub(logits, largest, out=scratch).exp_().sum(-1, keepdim=True).log_()
    return (logits.gather(-1, tokens.unsqueeze(-1)) - largest - log_z).squeeze(-1)


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    head: Head,
    token_weights: Tensor,
    settings: DistillSettings,
    answers: Answers | None = None,
) -> LossOutput:
    """Return the weighted sum over tokens of the divergence between student and teacher.

    Besides inputs and gradient it holds fp32 buffers of V tokens: 2 chunk_rows of them, and `spare_buffers` times as
    many rows as go through the divergence at once (on a CPU a few, on a GPU chunk_rows), and one such buffer more for a
    cap. A 16-bit head adds, on a GPU, the gradient of a chunk's logits in its type. Where no gradient can flow (no grad
    mode, or a student that needs none) only values are computed.

    Args:
        student: (N, H) hidden states of the student at the positions that predict the trajectory's tokens.
        teacher: (N, H) hidden states of the teacher at the same tokens; no gradient flows into them.
        head: the frozen output head, shared by both.
        token_weights: (N,) weight of each token, e.g. 1/count; rows of weight 0 are not computed, and their loss and
            gradient are exactly 0.
        settings: divergence, support, temperature, and rows of logits held at once. The choice of the top-k tokens has
            no gradient; a top_k of V or more is the full vocabulary.
        answers: the trajectories, whole ones; with `token_weights` other than none only.

    Raises:
        ValueError: shapes do not match, or the answers are missing.
    """
    if settings.token_weights != "none" and answers is None:
        raise ValueError(f"token_weights {settings.token_weights} needs the answers")
    if student.shape != teacher.shape or student.shape[1] != head.width or len(token_weights) != len(student):
        raise ValueError(
            f"shapes do not match: student {tuple(student.shape)}, teacher {tuple(teacher.shape)}, "
            f"head {tuple(head.weight.shape)}, token_weights {tuple(token_weights.shape)}"
        )
    divergence = _divergence if _is_full(settings, head.words) else _top_k_divergence
    rows_held = min(settings.chunk_rows, len(student))
    block = min(rows_held, _block_rows(head))
    # Allocated once: the allocator would not always put a chunk where the last one was.
    memory = _buffer(2 * rows_held, head)
    buffers = spare_buffers(settings, head.words) - (0 if _is_fused(settings) else AUTOGRAD_BUFFERS)
    spare = [_buffer(block, head) for _ in range(buffers)]
    slopes = _buffer(block, head) if head.softcap is not None else None
    log_probs = torch.zeros(2, len(student), dtype=torch.float32, device=student.device)

    def value_of(rows: Tensor, own: Tensor, other: Tensor, wanted: bool) -> Tensor:
        if answers is not None and settings.token_weights != "none":
            for role, logits in enumerate((own, other)):
                log_probs[role, rows] = _log_probs_of(logits, answers.tokens[rows], spare[0][: len(rows)])
        slope = None
        if slopes is not None and wanted:
            slope = head.slope(own, settings.kl_temperature, slopes[: len(own)])
        value = divergence(own, other, [x[: len(own)] for x in spare], settings, wanted)
        if slope is not None:
            other.mul_(slope)
        return value

    def chunk(rows: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
        # One product for both: the more rows, the fewer times the head is read.
        logits = head.logits(torch.cat([student[rows], teacher[rows]]), memory[: 2 * len(rows)])
        if settings.kl_temperature != 1.0:
            logits.div_(settings.kl_temperature)
        own, other = logits.chunk(2)
        blocks = zip(rows.split(block), own.split(block), other.split(block), strict=True)
        values = [value_of(*one, wanted) for one in blocks]
        return torch.cat(values), head.into_hidden(other) / settings.kl_temperature if wanted else None

    def final_weights() -> Tensor:
        assert answers is not None
        return reweighted(token_weights, log_probs[0], log_probs[1], answers, settings)

    last = None if settings.token_weights == "none" else final_weights
    return _sum_over_chunks(student, token_weights, settings.chunk_rows, chunk, last)


def _is_fused(settings: DistillSettings) -> bool:
    return settings.divergence in FUSED and settings.token_clip is None


def _is_full(settings: DistillSettings, vocabulary: int) -> bool:
    return settings.support == "full" or settings.top_k >= vocabulary


def spare_buffers(settings: DistillSettings, vocabulary: int) -> int:
    """Return how many buffers the loss over so many tokens needs besides the logits of student and teacher.

    Weights that depend on p and q need one for a moment, in which they borrow that of the divergence, if it has one.
    """
    weighed = int(settings.token_weights != "none")
    if not _is_fused(settings):
        return AUTOGRAD_BUFFERS + weighed
    return max(FUSED[settings.divergence][1] if _is_full(settings, vocabulary) else 0, weighed)


def _block_rows(head: Head) -> int:
    """Return the rows of logits that go through a divergence together."""
    return max(1, LOGITS_PER_BLOCK // head.words) if head.weight.device.type == "cpu" else sys.maxsize


def cross_entropy_loss(
    student: Tensor, head: Head, targets: Tensor, token_weights: Tensor, chunk_rows: int = 256
) -> LossOutput:
    """Return the weighted sum of -log p(target): supervised fine-tuning, the control arm.

    It holds one fp32 buffer of (chunk_rows, V), and one more where the head has a cap.

    Args:
        student: (N, H) hidden states at the positions that predict `targets`.
        head: the frozen output head.
        targets: (N,) token ids.
        token_weights: (N,) as in `distillation_loss`.
        chunk_rows: rows of logits held at once.

    Raises:
        ValueError: shapes do not match.
    """
    if student.shape[1] != head.width or not len(student) == len(targets) == len(token_weights):
        raise ValueError(
            f"shapes do not match: student {tuple(student.shape)}, head {tuple(head.weight.shape)}, "
            f"targets {tuple(targets.shape)}, token_weights {tuple(token_weights.shape)}"
        )

    memory = _buffer(min(chunk_rows, len(student)), head)
    slopes = _buffer(len(memory), head) if head.softcap is not None else None

    def chunk(rows: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
        logits, target = head.logits(student[rows], memory[: len(rows)]), targets[rows].unsqueeze(-1)
        slope = head.slope(logits, out=slopes[: len(rows)]) if slopes is not None and wanted else None
        chosen = _from_largest_(logits).gather(-1, target)
        p, log_z = _softmax(logits, logits)
        value = (log_z - chosen).squeeze(-1)
        if not wanted:
            return value, None
        # p - 1 at the target is minus the sum of the others, which does not cancel when p is nearly 1.
        p.scatter_(-1, target, 0.0)
        dz = p.scatter_(-1, target, -p.sum(-1, keepdim=True))
        return value, head.into_hidden(dz if slope is None else dz.mul_(slope))

    return _sum_over_chunks(student, token_weights, chunk_rows, chunk)


def token_log_likelihood(hidden: Tensor, head: Head, targets: Tensor, chunk_rows: int = 256) -> Tensor:
    """Return log p(target) in nats for each row, detached.

    Args:
        hidden: (N, H) hidden states at the positions that predict `targets`.
        head: the output head.
        targets: (N,) token ids.
        chunk_rows: rows of logits held at once.
    """
    everywhere = torch.ones(len(hidden), device=hidden.device)
    return -cross_entropy_loss(hidden.detach(), head, targets, everywhere, chunk_rows).per_token


@torch.no_grad()
def first_choices(hidden: Tensor, head: Head, chunk_rows: int = 256) -> Tensor:
    """Return the most likely token (N,) by hidden states (N, H); a few rows of logits at a time."""
    found = [head.logits(rows).argmax(-1) for rows in hidden.split(chunk_rows)]
    return torch.cat(found) if found else torch.empty(0, dtype=torch.long, device=hidden.device)
