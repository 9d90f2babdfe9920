"""What is tried. A recipe is a wording of the teacher's prompt, and settings of training on top of common ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

COMMON: dict[str, Any] = {
    "heldout.every": "null",
    "gate.action": "off",
    "checkpoint.every": 10_000,
}
"""Of every recipe. The rest are the profile's, cpu-demo."""

BASIS = "again"
"""The wording on which one addition at a time is tried."""


@dataclass(frozen=True)
class Recipe:
    """`wording`: a teacher template. `settings`: what differs from `COMMON`."""

    name: str
    wording: str = BASIS
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def is_sft(self) -> bool:
        """Is this the opponent?"""
        return self.settings.get("objective") == "sft"


def _sft(rate: str) -> Recipe:
    return Recipe(f"sft {rate}", BASIS, {"objective": "sft", "optim.learning_rate": rate})


OPPONENTS = tuple(_sft(rate) for rate in ("3e-4", "5e-4", "1e-3", "3e-3", "1e-2"))
"""SFT at several learning rates: the same records in the same order, the same optimiser and adapter."""

WORDINGS = tuple(
    Recipe(f"{wording}, {name}", wording, {"distill.divergence": divergence})
    for wording in ("again", "own_turn", "examples", "expert_reference", "repeat")
    for name, divergence in (("forward", "forward_kl"), ("reverse", "reverse_kl"))
)
"""Wording x divergence."""

ADDITIONS = (
    Recipe("mixed KL", settings={"distill.divergence": "mixed_kl"}),
    Recipe("jsd", settings={"distill.divergence": "jsd"}),
    Recipe("entropy-aware KL", settings={"distill.divergence": "entropy_aware_kl"}),
    Recipe("token clip 0.05", settings={"distill.token_clip": 0.05}),
    Recipe("prefix weights", settings={"distill.token_weights": "prefix"}),
    Recipe("lambda 1", settings={"distill.lambda_on_policy": 1.0}),
    Recipe("lambda 0", settings={"distill.lambda_on_policy": 0.0}),
    Recipe(
        "lambda 0 to 1",
        settings={"distill.lambda_start": 0.0, "distill.lambda_steps": 30, "distill.lambda_on_policy": 1.0},
    ),
    Recipe(
        "late on-policy steps",
        settings={"distill.lambda_start": 0.0, "distill.lambda_steps": 30, "distill.lambda_on_policy": 0.68},
    ),
    Recipe("start of 10 SFT steps", settings={"teacher.start": 10}),
    Recipe("ema teacher after the start", settings={"teacher.start": 10, "teacher.kind": "ema"}),
    Recipe("turns by position 0.6", settings={"optim.position_decay": 0.6}),
    Recipe("half of each step on-policy", settings={"distill.lambda_by": "turn", "distill.lambda_on_policy": 0.5}),
    Recipe("steps of one session", settings={"optim.group_by": "session"}),
    Recipe("whole rollouts from the start", settings={"rollout.start_tokens": "null"}),
    Recipe("rate 1e-3", settings={"optim.learning_rate": "1e-3"}),
    Recipe("rate 3e-3", settings={"optim.learning_rate": "3e-3"}),
)
"""One addition at a time, on the wording `BASIS` with forward KL."""

SETTINGS: dict[str, tuple[Recipe, ...]] = {
    "examples": (WORDINGS[0], *OPPONENTS, *WORDINGS[1:], *ADDITIONS),
    "real": (WORDINGS[0], WORDINGS[1], *OPPONENTS),
    "continual": (WORDINGS[0], WORDINGS[1], *OPPONENTS),
}
"""Setting -> its recipes."""
