"""Rollouts: the student's own answers, sampled together.

Decoding stays with transformers' `generate`. What is ours: which weights sample, which prompts share a batch, that the
distribution is the configured one and no other, seeds, stop tokens, and the comparison of sampler and trainer.

A batch runs until its last answer ends; answers that ended earlier stay in it as padding, since the longest one has to
be decoded in any case.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sdft_cli.config import RolloutSettings
from sdft_cli.engine.adapters import lora_layers, weights
from sdft_cli.engine.backend import Backend
from sdft_cli.engine.decoding import grouped_attention
from sdft_cli.engine.executors import decoding_cache
from sdft_cli.engine.forward import padded_passes
from sdft_cli.engine.free_memory import free_memory
from sdft_cli.engine.interrupts import interruptible
from sdft_cli.errors import UsageError, VerificationError

SamplingWeights = Literal["merged", "adapter"]

ADDABLE = (torch.float32, torch.bfloat16, torch.float16)
"""Types of weights to which a LoRA update can be added; anything else is a quantised code."""


@dataclass(frozen=True)
class Rollout:
    """Sampled token ids, the token that ends the turn included if it was sampled within the cap.

    `log_probs`, where they were recorded: log p of each id in nats, as the sampler's forward pass had it, at
    temperature 1 and over the whole vocabulary.
    """

    ids: list[int]
    finished: bool
    log_probs: list[float] | None = None


def choose_sampling_weights(backend: Backend, settings: RolloutSettings) -> tuple[SamplingWeights, str]:
    """Return which case of `adapters.weights` samples, and a sentence that says it and why.

    An engine of the backend takes the adapter. Else `auto` takes the merged copy if it fits in half of the memory that
    is free now, or leaves the adapter on.

    Raises:
        UsageError: merged was asked for, and a base weight is quantised, so that nothing can be added to it.
    """
    if backend.sampler is not None:
        return "adapter", "Rollouts: sampled by unsloth's vLLM engine, which gets the adapter anew for every step"
    size, quantised = merged_copy(backend)
    return decide_weights(settings.weights, size, free_memory(backend.device), quantised)


def merged_copy(backend: Backend) -> tuple[int, str | None]:
    """Return the bytes that a merged copy of the adapted weights takes, and the kind of a layer that is quantised."""
    size, quantised = 0, None
    for layer in lora_layers(backend.model).values():
        base = layer.get_base_layer()
        weight = getattr(base, "weight", None)
        if weight is None or weight.dtype not in ADDABLE:
            quantised = type(base).__name__
        else:
            size += weight.numel() * weight.element_size()
    return size, quantised


def decide_weights(
    asked: Literal["auto", "merged", "adapter"], size: int, free: int | None, quantised: str | None
) -> tuple[SamplingWeights, str]:
    """Decide for `choose_sampling_weights`.

    Args:
        asked: `rollout.weights`.
        size: bytes of a copy of the adapted weights.
        free: bytes of free memory; None if the system does not tell.
        quantised: the kind of a base layer that cannot be added to, if there is one.
    """
    if asked == "merged" and quantised:
        raise UsageError(
            f"rollout.weights is merged, but the base layers ({quantised}) are quantised and nothing can be added to "
            "them: use --set rollout.weights=adapter."
        )
    copy = f"{size / 1e9:.2f} GB"
    if asked == "adapter":
        return "adapter", "Rollouts: sampled with the adapter on (as asked)"
    if asked == "merged":
        return "merged", f"Rollouts: sampled from a merged copy of the adapted weights, {copy} (as asked)"
    if quantised:
        return "adapter", f"Rollouts: sampled with the adapter on (the base layers are quantised: {quantised})"
    if free is None:
        return "adapter", f"Rollouts: sampled with the adapter on (a merged copy takes {copy}; free memory is unknown)"
    room = f"half of the {free / 1e9:.2f} GB that are free"
    if 2 * size > free:
        return "adapter", f"Rollouts: sampled with the adapter on (a merged copy takes {copy}, more than {room})"
    return "merged", f"Rollouts: sampled from a merged copy of the adapted weights ({copy}, fits in {room})"


def stop_tokens(backend: Backend, turn_end_id: int) -> list[int]:
    """Return the ids that end a rollout: the template's end of turn and those of the model's generation config.

    Raises:
        UsageError: one of them is outside the vocabulary, so that no answer could ever end there.
    """
    configured = backend.base.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    found = sorted({turn_end_id, *(i for i in listed if i is not None)})
    words = backend.head.shape[0]
    outside = [i for i in found if not 0 <= i < words]
    if outside:
        raise UsageError(
            f"Stop token {outside[0]} is outside the model's vocabulary of {words} words: correct eos_token_id in its "
            "generation_config.json, or use the tokenizer that belongs to the model."
        )
    return found


def left_padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return ids and mask (B, T) with padding on the left, as batched decoding wants it."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row)
        mask[i, width - len(row) :] = 1
    return ids, mask


class LogProbRecorder:
    """A logits processor that changes nothing and keeps log p of each chosen token; it holds one step's (B, V) only.

    It stands before temperature and top-p and sees raw logits. A token is known one step after its distribution.
    """

    def __init__(self) -> None:
        self.chosen: list[Tensor] = []
        self.pending: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._settle(input_ids)
        self.pending = scores.float().log_softmax(-1)
        return scores

    def _settle(self, ids: Tensor) -> None:
        if self.pending is not None:
            self.chosen.append(self.pending.gather(-1, ids[:, -1:]))
            self.pending = None

    def finish(self, ids: Tensor, start: int) -> list[list[float]]:
        """Return log p of `ids[:, start:]`, row by row. `ids` (B, T) are prompts, `start` tokens wide, and answers."""
        if start + len(self.chosen) < ids.shape[1]:
            self._settle(ids)
        # On some devices generate runs one step more than it returns.
        columns = self.chosen[: ids.shape[1] - start]
        found: list[list[float]] = torch.cat(columns, -1).tolist()
        return found


@contextmanager
def _decoding(backend: Backend) -> Iterator[None]:
    """The backend's decoding mode, and none of the model's own generation settings.

    `generate` fills whatever its arguments leave open from the model's `generation_config.json`: penalties, min_p,
    banned and forced words. They would sample from another distribution than the one that the trainer scores.
    """
    from transformers import GenerationConfig

    own, config = backend.base.generation_config, backend.base.config.get_text_config()
    backend.base.generation_config = GenerationConfig()
    try:
        with backend.decoding(), grouped_attention(config) if backend.takes_masks else nullcontext():
            yield
    finally:
        backend.base.generation_config = own


@contextmanager
def _finite_only() -> Iterator[None]:
    """Say in one sentence that logits are not finite, which torch finds when it draws from them."""
    try:
        yield
    except RuntimeError as error:
        if "probability tensor contains" not in str(error):
            raise
        raise VerificationError(
            "The model's logits are not finite, so nothing can be sampled: start again with a lower "
            "optim.learning_rate or with dtype=float32; the checkpoints from before are kept."
        ) from error


def _decoding_config(
    max_new_tokens: int, stop_ids: Sequence[int], pad_id: int, temperature: float | None, top_p: float
) -> Any:
    from transformers import GenerationConfig

    sampling: dict[str, Any] = {"do_sample": False}
    if temperature is not None:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}  # transformers: 50
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=pad_id,
        use_cache=True,
        **sampling,
    )


@torch.no_grad()
def generate(
    backend: Backend,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: Sequence[int],
    pad_id: int,
    temperature: float | None = None,
    top_p: float = 1.0,
    record_log_probs: bool = False,
) -> list[Rollout]:
    """Decode an answer to each prompt with whatever weights are on.

    The distribution is exactly the model's at this temperature and top_p; the model's generation config has no say.

    Args:
        prompts: token ids; they may differ in length. Where the backend shares, common prefixes are prefilled once.
        max_new_tokens: cap on each answer.
        stop_ids: any of them ends an answer and is its last id.
        pad_id: fills rows; masked.
        temperature, top_p: sampling from torch's global generator; `temperature=None` is greedy decoding.
        record_log_probs: keep the sampler's log-probabilities of the sampled tokens.
    """
    ids, mask = left_padded(prompts, pad_id)
    recorder = LogProbRecorder() if record_log_probs else None
    backend.check_width(ids.shape[1] + max_new_tokens)
    with _decoding(backend), _finite_only(), interruptible():
        output = backend.model.generate(
            input_ids=ids.to(backend.device),
            attention_mask=mask.to(backend.device),
            generation_config=_decoding_config(max_new_tokens, stop_ids, pad_id, temperature, top_p),
            logits_processor=[recorder] if recorder else None,
            past_key_values=decoding_cache(backend, prompts, max_new_tokens),
        )
    start = ids.shape[1]
    recorded = recorder.finish(output, start) if recorder else [None] * len(prompts)
    rows = output[:, start:].tolist()
    return [until_stop(row, stop_ids, logs) for row, logs in zip(rows, recorded, strict=True)]


def until_stop(row: list[int], stop_ids: Sequence[int], log_probs: list[float] | None) -> Rollout:
    """Return an answer up to the first stop token, that one included."""
    stop = next((place for place, token in enumerate(row) if token in stop_ids), None)
    length = len(row) if stop is None else stop + 1
    return Rollout(row[:length], stop is not None, None if log_probs is None else log_probs[:length])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's global generators start from a seed; afterwards they go on from where they were."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def sample_rollouts(
    backend: Backend,
    prompts: Sequence[Sequence[int]],
    settings: RolloutSettings,
    stop_ids: Sequence[int],
    pad_id: int,
    seed: int,
    case: SamplingWeights | None = None,
    record_log_probs: bool = False,
) -> list[Rollout]:
    """Sample one rollout per prompt from the student; the same arguments give the same rollouts on CPU, bit for bit.

    A backend with an engine of its own samples with that; `case` says nothing then.

    Prompts of like length are decoded together up to `settings.max_tokens_per_pass` padded tokens. A prompt may come
    more than once: each time it has a sample of its own. Torch's generators are left in the state that they were in.

    Args:
        case: the weights that sample, from `choose_sampling_weights`; None: ask it now.
        record_log_probs: for `sampler_gap`.
    """
    if backend.sampler is not None:
        return backend.sampler.sample(prompts, settings, stop_ids, seed, record_log_probs)
    chosen = case or choose_sampling_weights(backend, settings)[0]
    lengths = [len(prompt) + settings.max_new_tokens for prompt in prompts]
    found: dict[int, Rollout] = {}
    with weights(backend.model, chosen), seeded(seed):
        for rows in padded_passes(lengths, settings.max_tokens_per_pass):
            answers = generate(
                backend,
                [prompts[i] for i in rows],
                settings.max_new_tokens,
                stop_ids,
                pad_id,
                settings.temperature,
                settings.top_p,
                record_log_probs,
            )
            found.update(zip(rows, answers, strict=True))
    return [found[i] for i in range(len(prompts))]


def sampler_gap(sampled: Sequence[Rollout], trainer_log_probs: Tensor) -> dict[str, float]:
    """Compare the sampler's log-probabilities of sampled tokens with the trainer's.

    The two run the same policy through other kernels, batches, and perhaps a merged copy of the weights. What they
    disagree on makes the training off-policy.

    Args:
        sampled: rollouts with recorded log-probabilities.
        trainer_log_probs: (sum |y|,) log p of the same tokens in nats at temperature 1, from the training forward pass
            (`loss.token_log_likelihood`), in the order of `sampled`.

    Returns `sampler_gap`, the mean |difference| per token; `sampler_gap_max`, the largest one; `sampler_kl`, the mean
    of log p(sampler) - log p(trainer), which estimates KL(sampler||trainer), without bias where tokens were sampled at
    temperature 1 and top_p 1. All in nats, and NaN if either side has one.

    Raises:
        ValueError: nothing was sampled or recorded, or the counts differ.
    """
    if not sampled or any(r.log_probs is None for r in sampled):
        raise ValueError("sampler_gap needs rollouts whose log-probabilities were recorded")
    own = torch.tensor([x for r in sampled for x in r.log_probs or ()], dtype=torch.float64)
    if own.shape != trainer_log_probs.shape:
        raise ValueError(f"{len(own)} tokens were sampled, the trainer scored {tuple(trainer_log_probs.shape)}")
    difference = own - trainer_log_probs.detach().to("cpu", torch.float64)
    size = difference.abs()
    return {
        "sampler_gap": float(size.mean()),
        "sampler_gap_max": float(size.max()),
        "sampler_kl": float(difference.mean()),
    }
