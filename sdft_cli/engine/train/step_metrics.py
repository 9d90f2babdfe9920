"""The metrics of an optimiser step: a line of `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from sdft_cli.choices import DIVERGENCES
from sdft_cli.config import TrainConfig
from sdft_cli.engine.objective.formula import token_weights
from sdft_cli.engine.objective.importance import importance, is_weighed
from sdft_cli.engine.passes.decode import Rollout
from sdft_cli.engine.score.scoring import answer_text
from sdft_cli.engine.train.rollouts import sampler_gap
from sdft_cli.engine.train.sdft_step import StepResult
from sdft_cli.prompts.chat import ChatPrompts
from sdft_cli.prompts.tool_scores import score_tool_turn
from sdft_cli.records import Record


def step_metrics(step: StepResult, config: TrainConfig, prompts: ChatPrompts) -> dict[str, Any]:
    """Return the numbers of a step: nats per token, shares in [0, 1], seconds, lengths in tokens."""
    return {
        "step": step.number,
        "loss": step.scored.loss,
        **_rollout_metrics(step, config, prompts),
        "grad_norm": step.grad_norm,
        "updated": step.updated,
        "learning_rate": step.learning_rate,
        **_speed(step),
    }


def _rollout_metrics(step: StepResult, config: TrainConfig, prompts: ChatPrompts) -> dict[str, Any]:
    taken, scored = step.taken, step.scored
    name = "nll_per_token" if step.objective == "sft" else DIVERGENCES[config.distill.divergence].metric
    counted = sum(1 for weights in token_weights(taken.rollouts, config.distill) for w in weights if w)
    tokens = sum(len(r.ids) for r in taken.rollouts)
    own = [i for i, flag in enumerate(taken.on_policy) if flag]
    valid = [_valid_call(taken.examples[i].record, taken.rollouts[i], prompts) for i in own]
    tool_turns = [flag for flag in valid if flag is not None]
    metrics: dict[str, Any] = {
        name: sum(map(sum, scored.per_token)) / max(1, counted),
        "loss_tokens": counted,
        "rollout_tokens": tokens,
        "rollout_length": tokens / len(taken.rollouts),
        "finished_share": sum(r.finished for r in taken.rollouts) / len(taken.rollouts),
        "on_policy_share": len(own) / len(taken.on_policy),
        "tool_valid_share": sum(tool_turns) / len(tool_turns) if tool_turns else None,
    }
    if scored.log_probs is not None and own:
        metrics |= _gap([taken.rollouts[i] for i in own], [scored.log_probs[i] for i in own])
    if config.rollout.source == "vllm":
        metrics |= _staleness(step, config, own)
    return metrics


def _staleness(step: StepResult, config: TrainConfig, own: Sequence[int]) -> dict[str, Any]:
    """Return how many updates the sampler had not seen, and what became of the token weights for it."""
    settings, rollouts = config.rollout, step.taken.rollouts
    found: dict[str, Any] = {"rollout_staleness": max((rollouts[i].staleness for i in own), default=None)}
    logs = step.scored.log_probs or []
    pairs = [(logs[i], rollouts[i].log_probs or []) for i in own if is_weighed(rollouts[i], settings)]
    weights = [importance(torch.tensor(now), torch.tensor(then[: len(now)]), settings) for now, then in pairs if now]
    if weights:
        joined = torch.cat(weights)
        found |= {
            "importance_weight": float(joined.mean()),
            "importance_clipped": float((joined >= settings.importance_clip).double().mean()),
        }
    return found


def _gap(rollouts: Sequence[Rollout], log_probs: Sequence[list[float]]) -> dict[str, float]:
    """Compare sampler and trainer at the tokens that both have scored: those up to the last one with loss."""
    pairs = [
        (replace(rollout, log_probs=(rollout.log_probs or [])[: len(own)]), own)
        for rollout, own in zip(rollouts, log_probs, strict=True)
        if own
    ]
    return sampler_gap([r for r, _ in pairs], torch.tensor([x for _, own in pairs for x in own])) if pairs else {}


def _valid_call(record: Record, rollout: Rollout, prompts: ChatPrompts) -> bool | None:
    """Say whether a rollout is a valid call of the right tool; None where none was made or none can be scored."""
    if not record.reference.tool_calls or not prompts.scores_calls(record):
        return None
    turn = prompts.parse(answer_text(rollout, prompts), record.tools)
    return score_tool_turn(turn, record.reference, record.tools).valid


def _speed(step: StepResult) -> dict[str, Any]:
    seconds = sum(step.seconds.values())
    tokens = sum(len(r.ids) for r in step.taken.rollouts)
    prompts = sum(len(e.student) for e in step.taken.examples)
    if step.objective == "sdft":
        prompts += tokens + sum(len(e.teacher) for e in step.taken.examples)
    return {
        "tokens_per_second": (prompts + tokens) / seconds,
        "seconds": seconds,
        "phase_seconds": {name: round(value, 4) for name, value in step.seconds.items()},
    }
