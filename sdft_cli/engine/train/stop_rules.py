"""Rules that notice a run that goes wrong, from its metrics alone. Pure: no model, no torch.

What they remember (`state`) is JSON and goes into a checkpoint, so a resumed run finds what an uninterrupted one finds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sdft_cli.config import StopSettings
from sdft_cli.errors import DataError

Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """A rule that was broken. `message` is one sentence with the numbers and what to do."""

    rule: str
    action: Literal["warn", "stop"]
    message: str


class StopRules:
    """The rules of `StopSettings`, with what they remember of the evaluations so far."""

    def __init__(self, settings: StopSettings) -> None:
        self.settings = settings
        self.first_length: float | None = None
        self.best_validity: float | None = None
        self.recent_kl: list[float] = []

    def state(self) -> dict[str, Any]:
        """Return the memory as a JSON document."""
        return {
            "first_length": self.first_length,
            "best_validity": self.best_validity,
            "recent_kl": list(self.recent_kl),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a memory that `state` returned.

        Raises:
            DataError: it is none.
        """
        if set(state) != set(self.state()):
            raise DataError("The memory of the stop rules in this checkpoint is damaged: resume from an older one.")
        self.first_length = state["first_length"]
        self.best_validity = state["best_validity"]
        self.recent_kl = list(state["recent_kl"])

    def after_step(self, metrics: Metrics) -> list[Finding]:
        """Judge a step by `loss`, `grad_norm` and, where it was measured, `sampler_gap` (nats per token)."""
        return self._findings(
            not_finite=_not_finite(metrics, ("loss", "grad_norm")),
            sampler_gap=self._sampler_gap(metrics.get("sampler_gap"), metrics.get("rollout_staleness")),
        )

    def after_evaluation(self, metrics: Metrics, comparable: bool = True) -> list[Finding]:
        """Judge an evaluation by `rollout_length`, `tool_valid_share` (None without tool turns) and `kl_per_token`.

        `comparable`: the divergence is of the teacher that later evaluations have too; another is not remembered.
        """
        broken = _not_finite(metrics, ("kl_per_token", "expert_nll_per_token"))
        return self._findings(
            not_finite=broken,
            length_collapse=self._length(metrics["rollout_length"]),
            validity_collapse=self._validity(metrics["tool_valid_share"]),
            kl_rising=None if broken or not comparable else self._kl(metrics["kl_per_token"]),
        )

    def _findings(self, **messages: str | None) -> list[Finding]:
        found = []
        for rule, message in messages.items():
            action = getattr(self.settings, rule)
            if message is not None and action != "off":
                found.append(Finding(rule, action, message))
        return found

    def _sampler_gap(self, gap: float | None, staleness: int | None) -> str | None:
        limit = self.settings.max_sampler_gap
        if gap is None or gap <= limit:  # a gap that is NaN is none that is small
            return None
        advice = "set rollout.weights=adapter, or dtype=float32"
        if staleness is not None:
            advice = "serve the run's model in the run's dtype, with --logprobs-mode raw_logprobs"
        if staleness:
            advice += f", and hand the adapter over more often (it was {staleness} step(s) old)"
        return (
            f"Sampler and trainer disagree by {gap:.3g} nats per token (limit {limit:g}), so the rollouts are not the "
            f"student's own: {advice}."
        )

    def _length(self, length: float) -> str | None:
        if self.first_length is None:
            self.first_length = length
        limit = self.settings.length_share * self.first_length
        if length >= limit:
            return None
        return (
            f"Held-out rollouts are {length:.1f} tokens long, below {self.settings.length_share:g} of the "
            f"{self.first_length:.1f} at the first evaluation: lower optim.learning_rate and go back to a checkpoint "
            "before the fall."
        )

    def _validity(self, share: float | None) -> str | None:
        if share is None:
            return None
        best = self.best_validity
        self.best_validity = share if best is None else max(best, share)
        if best is None or share >= self.settings.validity_share * best:
            return None
        return (
            f"{share:.1%} of the held-out tool turns are valid calls, below {self.settings.validity_share:g} of the "
            f"{best:.1%} at the best evaluation: lower optim.learning_rate and go back to a checkpoint before the fall."
        )

    def _kl(self, kl: float) -> str | None:
        count = self.settings.kl_rising_evaluations
        self.recent_kl = [*self.recent_kl, kl][-(count + 1) :]
        rises = [a < b for a, b in zip(self.recent_kl, self.recent_kl[1:], strict=False)]
        if len(rises) < count or not all(rises):
            return None
        return (
            f"Held-out KL rose in {count} evaluation(s) in a row, from {self.recent_kl[0]:.4f} to {kl:.4f} nats per "
            "token: lower optim.learning_rate, or keep the checkpoint before the rise."
        )


def _not_finite(metrics: Metrics, names: tuple[str, ...]) -> str | None:
    broken = [f"{name} is {metrics[name]}" for name in names if not math.isfinite(metrics[name])]
    if not broken:
        return None
    return f"{' and '.join(broken)}: go back to the last checkpoint with a lower optim.learning_rate."
