"""`sdft eval` as a function: base against tuned on the validation records.

Both are measured on the same records with the same seeds: the answers are decoded greedily from each model, the
divergence is measured on each model's own answer (on-policy), against the base model with the reference in its prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from sdft_cli.config import EvalConfig
from sdft_cli.engine.backend import Backend
from sdft_cli.engine.measure import Item, Role, encode, measure, plan, summarise
from sdft_cli.prompts.chat import ChatPrompts
from sdft_cli.records import Record


@dataclass(frozen=True)
class Contender:
    """A model under test: a backend whose adapter is on or off, or a model without one."""

    name: str
    backend: Backend
    adapter: bool

    @property
    def role(self) -> Role:
        """Its weights: the adapter's, decoded from a merged copy for speed, or the base's."""
        return Role(self.backend, "adapter", "merged") if self.adapter else Role(self.backend, "base", "base")


def evaluate(
    contenders: Sequence[Contender],
    teacher: Contender,
    records: Sequence[Record],
    prompts: ChatPrompts,
    config: EvalConfig,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Measure every contender on the same records.

    Args:
        contenders: e.g. base and tuned.
        teacher: the base model; it sees the expert's turn.
        records: validation records.

    Returns `{"contenders": {name: {"summary": ..., "items": [...]}}, "records": n}`; the same seed gives the same
    document.
    """
    chosen = list(records[: config.limit] if config.limit else records)
    passes = plan(
        teacher.backend,
        chosen,
        prompts,
        config.max_new_tokens,
        config.max_tokens_per_pass,
        config.max_records_per_pass,
    )
    found: dict[str, Any] = {}
    for contender in contenders:
        torch.manual_seed(config.seed)
        items: dict[str, Item] = {}
        for rows in passes:
            progress(f"Measuring {contender.name}", len(items), len(chosen))
            batch = encode([chosen[i] for i in rows], prompts)
            measured = measure(contender.role, teacher.role, batch, prompts, config.max_new_tokens)
            items.update((i.record_id, i) for i in measured)
        progress(f"Measuring {contender.name}", len(items), len(chosen))
        ordered = [items[r.record_id] for r in chosen]
        found[contender.name] = {"summary": summarise(ordered), "items": [asdict(i) for i in ordered]}
    return {"records": len(chosen), "config": config.model_dump(), "contenders": found}
