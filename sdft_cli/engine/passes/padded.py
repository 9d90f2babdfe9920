"""Padded forward passes over many prompts at once: the plain way, which every model can run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sdft_cli.engine.models.backend import Backend

Sequences = Sequence[Sequence[int]]


def padded_states(backend: Backend, rows: Sequences, pad_id: int) -> list[Tensor]:
    """Return the last hidden states (T_i, H) of each sequence; one row of the batch each, padding on the right."""
    width = max(map(len, rows))
    backend.check_width(width)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    states = backend.trunk_pass(
        input_ids=ids.to(backend.device), attention_mask=mask.to(backend.device), use_cache=False
    ).last_hidden_state
    return [state[: len(row)] for state, row in zip(states, rows, strict=True)]


def padded_passes(lengths: Sequence[int], max_tokens: int, max_items: int | None = None) -> list[list[int]]:
    """Cut items into forward passes of at most `max_tokens` padded tokens each, items of like length together.

    Returns lists of indices, each index once. A pass of n items costs n * longest; an item that is longer than the cap
    is a pass of its own.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        count = len(groups[-1]) + 1 if groups else 1
        if groups and count * lengths[index] <= max_tokens and (max_items is None or count <= max_items):
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def context_obstacle(config: Any) -> str | None:
    """Say why a state is not a function of the tokens so far and their positions, by the model's (text) config."""
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "the model attends in a sliding window"
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in ("dynamic", "longrope"):
        return f"positions of type {rope} depend on the length of the batch"
    return None
