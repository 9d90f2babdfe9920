"""Rollouts: the student's own answers, sampled together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sdft_cli.config import RolloutSettings
from sdft_cli.engine.adapters import weights
from sdft_cli.engine.backend import Backend
from sdft_cli.engine.forward import packed_cache, padded_passes


@dataclass(frozen=True)
class Rollout:
    """Sampled token ids, the token that ends the turn included if it was sampled within the cap."""

    ids: list[int]
    finished: bool


PREFILL_TOKENS = 8192
"""Prompts with common prefixes are prefilled together up to so many distinct tokens."""


def left_padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask (B, T) with padding on the left, as batched decoding wants it."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row)
        mask[i, width - len(row) :] = 1
    return ids, mask


def stop_tokens(backend: Backend, turn_end_id: int) -> list[int]:
    """Return the ids that end a rollout: the template's end of turn and those of the generation config."""
    configured = backend.base.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return sorted({turn_end_id, *(i for i in listed if i is not None)})


@torch.no_grad()
def generate(
    backend: Backend,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: Sequence[int],
    pad_id: int,
    temperature: float | None = None,
    top_p: float = 1.0,
) -> list[Rollout]:
    """Decode an answer to each prompt with whatever weights are on.

    Args:
        prompts: token ids; they may differ in length.
        max_new_tokens: cap on each answer.
        stop_ids: any of them ends an answer and is its last id.
        temperature, top_p: sampling from torch's global generator; `temperature=None` is greedy decoding.
    """
    ids, mask = left_padded(prompts, pad_id)
    shared = backend.packed and min(map(len, prompts)) > 1
    sampling = (
        {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if temperature is None
        else {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    )
    backend.check_width(ids.shape[1] + max_new_tokens)
    with backend.decoding():
        output = backend.model.generate(
            input_ids=ids.to(backend.device),
            attention_mask=mask.to(backend.device),
            max_new_tokens=max_new_tokens,
            eos_token_id=list(stop_ids),
            pad_token_id=pad_id,
            use_cache=True,
            past_key_values=packed_cache(backend, prompts, PREFILL_TOKENS) if shared else None,
            **sampling,
        )
    return [_until_stop(row[ids.shape[1] :], stop_ids) for row in output.tolist()]


def _until_stop(row: list[int], stop_ids: Sequence[int]) -> Rollout:
    for position, token in enumerate(row):
        if token in stop_ids:
            return Rollout(row[: position + 1], True)
    return Rollout(row, False)


def sample_rollouts(
    backend: Backend,
    prompts: Sequence[Sequence[int]],
    settings: RolloutSettings,
    stop_ids: Sequence[int],
    pad_id: int,
    seed: int,
) -> list[Rollout]:
    """Sample one rollout per prompt from the student; the same seed gives the same rollouts on CPU.

    Prompts are decoded together up to `settings.max_tokens_per_pass` padded tokens.
    """
    torch.manual_seed(seed)
    lengths = [len(prompt) + settings.max_new_tokens for prompt in prompts]
    found: dict[int, Rollout] = {}
    with weights(backend.model, "adapter" if settings.weights == "adapter" else "merged"):
        for rows in padded_passes(lengths, settings.max_tokens_per_pass):
            batch = [prompts[i] for i in rows]
            answers = generate(
                backend, batch, settings.max_new_tokens, stop_ids, pad_id, settings.temperature, settings.top_p
            )
            found.update(zip(rows, answers, strict=True))
    return [found[i] for i in range(len(prompts))]
