"""What lowers the peak of a plan that does not fit: each change of the profile alone, and the prompt cap that fits."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sdft_cli.config import TrainConfig, with_settings
from sdft_cli.engine.plan.memory import Memory
from sdft_cli.engine.plan.model_shape import Shape
from sdft_cli.records import RecordRow

Predict = Callable[[Sequence[RecordRow], TrainConfig, Shape], Memory]


@dataclass(frozen=True)
class Remedy:
    """A change of the profile, the peak that it would have, and the records that it would lose."""

    change: str
    peak: int
    fits: bool
    records_lost: int = 0


def _changes(config: TrainConfig) -> list[tuple[str, str, Any]]:
    """Settings that lower memory, where they are not at that value already: how a user gives them, key and value."""
    optim, rollout = config.optim, config.rollout
    values: dict[str, tuple[Any, bool]] = {
        "gradient_checkpointing": (True, not config.gradient_checkpointing),
        "dtype": ("bfloat16", config.dtype == "float32"),
        "load_in_4bit": (True, not config.load_in_4bit),
        "optim.max_tokens_per_pass": (optim.max_tokens_per_pass // 2, optim.max_tokens_per_pass > 1),
        "segment_tokens": (config.segment_tokens // 2, config.segment_tokens >= 512),
        "distill.chunk_rows": (64, config.distill.chunk_rows > 64),
        "rollout.weights": ("adapter", rollout.weights != "adapter"),
        "rollout.max_tokens_per_pass": (rollout.max_tokens_per_pass // 2, rollout.max_tokens_per_pass > 1),
        "rollout.max_new_tokens": (rollout.max_new_tokens // 2, rollout.max_new_tokens > 1),
        "lora.rank": (config.lora.rank // 2, config.lora.rank > 1),
    }
    notes = {"load_in_4bit": " (backend unsloth)"}
    return [
        (f"--set {key}={str(value).lower()}{notes.get(key, '')}", key, value)
        for key, (value, useful) in values.items()
        if useful
    ]


def remedies(
    rows: Sequence[RecordRow], shape: Shape, config: TrainConfig, predict: Predict, usable: int
) -> list[Remedy]:
    """Return what lowers the peak, alone, in order of effect; last the prompt cap at which everything fits."""
    now = predict(rows, config, shape).peak.total
    found = []
    for change, key, value in _changes(config):
        beside = {"rollout.weights": "adapter"} if key == "load_in_4bit" else {}  # 4 bits have no merged sum
        other = with_settings(config, {key: value, **beside})
        adapter = shape.adapter_parameters * other.lora.rank // shape.rank
        peak = predict(rows, other, replace(shape, adapter_parameters=adapter, rank=other.lora.rank)).peak.total
        if peak < now:
            found.append(Remedy(change, peak, peak <= usable))
    found.sort(key=lambda remedy: remedy.peak)
    cap = prompt_cap_that_fits(rows, shape, config, predict, usable)
    if cap:
        kept = [row for row in rows if row.teacher_prompt_tokens <= cap]
        peak = predict(kept, config, shape).peak.total
        found.append(Remedy(f"max_prompt_tokens={cap}", peak, True, len(rows) - len(kept)))
    return found


def prompt_cap_that_fits(
    rows: Sequence[RecordRow], shape: Shape, config: TrainConfig, predict: Predict, usable: int
) -> int | None:
    """Return the longest teacher prompt of the dataset up to which every step fits, or None if none does."""
    lengths = sorted({row.teacher_prompt_tokens for row in rows})

    def too_much(cap: int) -> bool:
        kept = [row for row in rows if row.teacher_prompt_tokens <= cap]
        return predict(kept, config, shape).peak.total > usable

    fitting = bisect_left(lengths, True, key=too_much)
    return lengths[fitting - 1] if fitting else None
