"""Is the checkpoint on disk the model that was trained? Compare next-token distributions over real prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sdft_cli.engine.forward import padded_passes
from sdft_cli.engine.rollout import left_padded
from sdft_cli.engine.runs import CheckPrompt
from sdft_cli.prompts.tool_calls import parse_turn

MAX_MEAN_KL = 0.01
"""Nats. Casting W + delta to bf16 is a relative error of at most 2^-9 a weight; what it costs is measured, and a
merge that costs more than this is not the model that was trained."""
MIN_GAIN = 5.0
"""Where the adapter moves the model by more than `MAX_MEAN_KL`, the merge must be this many times nearer to it than
the base is."""

DECODE_TOKENS = 16_384
"""Padded tokens, answers included, of prompts that are decoded together."""
ANSWER_TOKENS = 48
"""Length of the greedy answers that are compared. They are told and not judged: a near tie changes all that follows."""


@torch.no_grad()
def log_probabilities(model: Any, prompts: Sequence[CheckPrompt], device: torch.device) -> torch.Tensor:
    """Return log-probabilities (positions, V), fp32 on the CPU, at every answer position."""
    found = []
    for item in prompts:
        ids = torch.tensor([[*item.prompt, *item.answer]], device=device)
        logits = model(input_ids=ids, logits_to_keep=len(item.answer) + 1).logits[0, :-1]
        found.append(logits.float().log_softmax(-1).cpu())
    return torch.cat(found)


@torch.no_grad()
def greedy_answers(model: Any, prompts: Sequence[CheckPrompt], device: torch.device) -> list[list[int]]:
    """Return each prompt's greedy answer, at most `ANSWER_TOKENS` tokens, without what ended it.

    Prompts are decoded together, padded on the left, up to `DECODE_TOKENS` a batch.
    """
    ends = model.generation_config.eos_token_id
    stops = set(ends if isinstance(ends, list) else [ends])
    pad = next((token for token in stops if token is not None), 0)
    found: dict[int, list[int]] = {}
    for rows in padded_passes([len(item.prompt) + ANSWER_TOKENS for item in prompts], DECODE_TOKENS):
        ids, mask = (t.to(device) for t in left_padded([prompts[i].prompt for i in rows], pad))
        output = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=ANSWER_TOKENS, pad_token_id=pad
        )
        for i, row in zip(rows, output[:, ids.shape[1] :].tolist(), strict=True):
            end = next((place for place, token in enumerate(row) if token in stops), len(row))
            found[i] = row[:end]
    return [found[i] for i in range(len(prompts))]


def same_answers(trained: Sequence[str], merged: Sequence[str]) -> dict[str, int]:
    """Count the answers that are the same text, and those with the same tool calls (perhaps none)."""
    pairs = list(zip(trained, merged, strict=True))
    calls = [(parse_turn(a), parse_turn(b)) for a, b in pairs]
    return {
        "answers": len(pairs),
        "same_answers": sum(a == b for a, b in pairs),
        "same_calls": sum((a.calls, a.errors) == (b.calls, b.errors) for a, b in calls),
    }


def compare(trained: torch.Tensor, merged: torch.Tensor, base: torch.Tensor) -> dict[str, Any]:
    """Compare log-probabilities (positions, V): KL in nats of merged and of base from the trained model."""
    kl = (trained.exp() * (trained - merged)).sum(-1)
    base_kl = (trained.exp() * (trained - base)).sum(-1)
    return {
        "mean_kl": float(kl.mean()),
        "max_kl": float(kl.max()),
        "base_mean_kl": float(base_kl.mean()),
        "top1_agreement": float((trained.argmax(-1) == merged.argmax(-1)).float().mean()),
        "positions": len(kl),
    }


def failures(check: dict[str, Any]) -> list[str]:
    """Return what is wrong with a merge; empty if it is the model that was trained."""
    found = []
    if not check["mean_kl"] <= MAX_MEAN_KL:  # NaN fails too
        found.append(f"mean KL {check['mean_kl']:.2e} is over {MAX_MEAN_KL}")
    if check["base_mean_kl"] > MAX_MEAN_KL and not check["mean_kl"] * MIN_GAIN <= check["base_mean_kl"]:
        found.append(
            f"the base (KL {check['base_mean_kl']:.2e}) is about as near as the merge ({check['mean_kl']:.2e})"
        )
    return found
