"""Is the checkpoint on disk the model that was trained? Loaded and compared with base + adapter over real prompts.

Distributions at the expert's tokens are judged. Whether the checkpoint's greedy answers, tool calls mostly, are those
of the trained model is told and not judged: a near tie changes all that follows. Models run by their own `forward` and `generate`, as they will wherever the checkpoint goes; one is in memory.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sdft_cli.engine.adapters import weights
from sdft_cli.engine.backend_transformers import load_model
from sdft_cli.engine.forward import padded_passes
from sdft_cli.engine.quiet import quiet_libraries
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


def compare_models(
    base: Path, adapter: Path, merged: Path, prompts: Sequence[CheckPrompt], dtype: torch.dtype
) -> dict[str, Any]:
    """Compare a checkpoint, loaded from disk, with base + adapter: distributions, and greedy answers.

    On the GPU if there is one and the models fit into its memory, else on the CPU; `device` of the result says which.

    Args:
        base, adapter, merged: folders.
        prompts: what to compare on.
        dtype: to load all weights in.
    """
    if torch.cuda.is_available():
        try:
            return _compared(base, adapter, merged, prompts, dtype, torch.device("cuda"))
        except torch.OutOfMemoryError:
            pass  # out of the handler first: its traceback holds the models
        gc.collect()
        torch.cuda.empty_cache()
    return _compared(base, adapter, merged, prompts, dtype, torch.device("cpu"))


def _compared(
    base: Path, adapter: Path, merged: Path, prompts: Sequence[CheckPrompt], dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    quiet_libraries()
    from peft import PeftModel
    from transformers import AutoTokenizer

    model = load_model(str(merged), dtype, device)
    merged_log_p, merged_answers = log_probabilities(model, prompts, device), greedy_answers(model, prompts, device)
    del model
    gc.collect()
    adapted: Any = PeftModel.from_pretrained(load_model(str(base), dtype, device), str(adapter)).eval()
    trained_log_p = log_probabilities(adapted, prompts, device)
    replays = [CheckPrompt(item.prompt, answer) for item, answer in zip(prompts, merged_answers, strict=True)]
    replayed = [is_greedy(adapted, replay, device) for replay in replays]
    with weights(adapted, "base"):
        base_log_p = log_probabilities(adapted, prompts, device)
    tokenizer: Any = AutoTokenizer.from_pretrained(str(merged))
    calls = [has_call(tokenizer.decode(answer)) for answer in merged_answers]
    return {
        "device": device.type,
        **compare(trained_log_p, merged_log_p, base_log_p),
        "answers": len(replayed),
        "same_answers": sum(replayed),
        "answers_with_calls": sum(calls),
        "same_answers_with_calls": sum(same and call for same, call in zip(replayed, calls, strict=True)),
    }


@torch.no_grad()
def log_probabilities(model: Any, prompts: Sequence[CheckPrompt], device: torch.device) -> torch.Tensor:
    """Return log-probabilities (positions, V), fp32 on the CPU, at every answer position."""
    found = [_logits(model, item.prompt, item.answer, device)[:-1].float().log_softmax(-1).cpu() for item in prompts]
    return torch.cat(found)


def _logits(model: Any, prompt: Sequence[int], answer: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return the logits (|y| + 1, V) that predict each token of an answer, and what comes after it."""
    ids = torch.tensor([[*prompt, *answer]], device=device)
    logits: torch.Tensor = model(input_ids=ids, logits_to_keep=len(answer) + 1).logits[0]
    return logits


@torch.no_grad()
def greedy_answers(model: Any, prompts: Sequence[CheckPrompt], device: torch.device) -> list[list[int]]:
    """Return each prompt's greedy answer, the token that ends it included, at most as long as the longest of `prompts`.

    Prompts are decoded together, padded on the left, up to `DECODE_TOKENS` a batch.
    """
    stops = _stops(model)
    pad, cap = min(stops, default=0), _cap(prompts)
    found: dict[int, list[int]] = {}
    for rows in padded_passes([len(item.prompt) + cap for item in prompts], DECODE_TOKENS):
        ids, mask = (t.to(device) for t in left_padded([prompts[i].prompt for i in rows], pad))
        output = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=cap, pad_token_id=pad
        )
        for i, row in zip(rows, output[:, ids.shape[1] :].tolist(), strict=True):
            end = next((place for place, token in enumerate(row) if token in stops), len(row))
            found[i] = row[: end + 1]
    return [found[i] for i in range(len(prompts))]


def _stops(model: Any) -> set[int]:
    ends = model.generation_config.eos_token_id
    return set(ends if isinstance(ends, list) else [] if ends is None else [ends])


def _cap(prompts: Sequence[CheckPrompt]) -> int:
    return max(len(item.answer) for item in prompts)


@torch.no_grad()
def is_greedy(model: Any, item: CheckPrompt, device: torch.device) -> bool:
    """Say whether every token of an answer is the model's likeliest: then it is what the model itself would answer.

    One pass instead of a decode.
    """
    return bool(_logits(model, item.prompt, item.answer, device)[:-1].argmax(-1).tolist() == item.answer)


def has_call(text: str) -> bool:
    """Say whether an answer holds a tool call, or the beginning of one."""
    turn = parse_turn(text)
    return bool(turn.calls or turn.errors)


def compare(trained: torch.Tensor, merged: torch.Tensor, base: torch.Tensor) -> dict[str, Any]:
    """Compare log-probabilities (positions, V): KL in nats of merged and of base from the trained model.

    `base_is_told_apart`: the merge is `MIN_GAIN` times nearer than the base is. Where it is not, the update may be too
    small for this comparison, and the tensors alone say that it is there.
    """
    kl = (trained.exp() * (trained - merged)).sum(-1)
    base_kl = (trained.exp() * (trained - base)).sum(-1)
    return {
        "mean_kl": float(kl.mean()),
        "max_kl": float(kl.max()),
        "base_mean_kl": float(base_kl.mean()),
        "top1_agreement": float((trained.argmax(-1) == merged.argmax(-1)).float().mean()),
        "positions": len(kl),
        "base_is_told_apart": float(kl.mean()) * MIN_GAIN <= float(base_kl.mean()),
    }


def failures(check: dict[str, Any]) -> list[str]:
    """Return what is wrong with a merge; empty if it is the model that was trained."""
    found = []
    if not check["mean_kl"] <= MAX_MEAN_KL:  # NaN fails too
        found.append(f"mean KL {check['mean_kl']:.2e} is over {MAX_MEAN_KL}")
    if check["base_mean_kl"] > MAX_MEAN_KL and not check["base_is_told_apart"]:
        found.append(
            f"the base (KL {check['base_mean_kl']:.2e}) is about as near as the merge ({check['mean_kl']:.2e})"
        )
    return found
