"""What changes with the step: the learning rate, the share of the student's own rollouts, their cap."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from sdft_cli.config import OptimSettings, RolloutSettings, TrainConfig
from sdft_cli.engine.objective.batches import on_policy_flags


def adamw(
    parameters: Iterable[torch.nn.Parameter], optim: OptimSettings
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """Return the optimiser of the adapter and the schedule of its learning rate."""
    optimizer = torch.optim.AdamW(
        parameters, lr=optim.learning_rate, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay
    )
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(optim, step))


def rate_factor(optim: OptimSettings, step: int) -> float:
    """Return what the learning rate is multiplied with at a step (from 0)."""
    if step < optim.warmup_steps:
        return (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return 1.0
    return max(0.0, (optim.max_steps - step) / max(1, optim.max_steps - optim.warmup_steps))


def objective_at(config: TrainConfig, step: int) -> str:
    """Return what a step (from 1) minimises: sdft or sft, which the first `teacher.start` steps do in any case."""
    return "sft" if step <= config.teacher.start else config.objective


def flags_at(config: TrainConfig, step: int, first: int, size: int) -> list[bool]:
    """Say which turns of a step (from 1) the student answers itself: `size` turns, `first` behind `teacher.start`.

    `distill.lambda_steps` are steps of `optim.turns_per_step` turns, from the end of `teacher.start` on. With
    `lambda_by: step` a step is on-policy as a whole or not at all, as in GKD (arXiv 2306.13649, alg. 1): then all of
    its rollouts are decoded at once, which costs hardly more than some of them.
    """
    if objective_at(config, step) == "sft":
        return [False] * size
    distill, each = config.distill, config.optim.turns_per_step
    start = config.teacher.start
    if distill.lambda_by == "step":
        of_steps = (step - 1 - start, 1, distill.lambda_start, distill.lambda_steps)
        return on_policy_flags(distill.lambda_on_policy, config.seed, *of_steps) * size
    return on_policy_flags(
        distill.lambda_on_policy, config.seed, first, size, distill.lambda_start, distill.lambda_steps * each
    )


def rollout_at(config: TrainConfig, step: int) -> RolloutSettings:
    """Return how the student samples at a step (from 1): with the cap of that step, from `teacher.start` on."""
    rollout, done = config.rollout, step - 1 - config.teacher.start
    if rollout.start_tokens is None or done >= rollout.grow_steps:
        return rollout
    first = min(rollout.start_tokens, rollout.max_new_tokens)
    grown = (rollout.max_new_tokens - first) * max(0, done) // rollout.grow_steps
    return rollout.model_copy(update={"max_new_tokens": first + grown, "start_tokens": None})
