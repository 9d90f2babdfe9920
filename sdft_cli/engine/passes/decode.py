"""Decoding: answers to several prompts, sampled or greedy, with transformers' `generate` or in steps of our own.

What is ours: that the distribution is the configured one and no other, seeds, stop tokens, and the cache.

A batch runs until its last answer ends; answers that ended earlier stay in it as padding, since the longest one has to
be decoded in any case.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.models.interrupts import interruptible
from sdft_cli.engine.passes.attention import grouped_attention, takes_kernels
from sdft_cli.engine.passes.decode_steps import Sampling, decode_in_steps
from sdft_cli.engine.passes.executors import decoding_cache
from sdft_cli.engine.passes.replay import runner_of
from sdft_cli.engine.passes.timing import decoded
from sdft_cli.errors import UsageError, VerificationError


@dataclass(frozen=True)
class Rollout:
    """Sampled token ids, the token that ends the turn included if it was sampled within the cap.

    `log_probs`, where they were recorded: log p of each id in nats, as the sampler's forward pass had it, at
    temperature 1 and over the whole vocabulary.
    """

    ids: list[int]
    finished: bool
    log_probs: list[float] | None = None


def stop_tokens(backend: Backend, turn_end_ids: Iterable[int]) -> list[int]:
    """Return the ids that end a rollout: the template's ends of a turn and those of the model's generation config.

    Raises:
        UsageError: one of them is outside the vocabulary, so that no answer could ever end there.
    """
    configured = backend.base.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    found = sorted({*turn_end_ids, *(i for i in listed if i is not None)})
    words = backend.head.words
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

    def finish(self, ids: Tensor, start: int) -> Tensor:
        """Return log p of `ids[:, start:]`, (B, n). `ids` (B, T) are prompts, `start` tokens wide, and answers."""
        if start + len(self.chosen) < ids.shape[1]:
            self._settle(ids)
        # On some devices generate runs one step more than it returns.
        return torch.cat(self.chosen[: ids.shape[1] - start], -1)


class _StepCounter:
    """A logits processor that changes nothing and tells of each step."""

    def __init__(self, most: int) -> None:
        self.steps, self.most = 0, most

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.steps += 1
        decoded(self.steps, self.most)
        return scores


@contextmanager
def own_settings_off(model: Any) -> Iterator[None]:
    """None of a Hugging Face model's own generation settings has a say.

    `generate` fills whatever its arguments leave open from the model's `generation_config.json`: penalties, min_p,
    banned and forced words. They would decode from another distribution than the one that is scored.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def _decoding(backend: Backend) -> Iterator[None]:
    """The backend's decoding mode, its attention, and none of the model's own generation settings."""
    ours = backend.own_attention is None and takes_kernels(backend.base)
    ours = ours and (backend.decoder != "generate" or backend.takes_cache)
    attention = grouped_attention(backend.base.config.get_text_config()) if ours else nullcontext()
    with own_settings_off(backend.base), backend.decoding(), attention:
        yield


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


def decoding_config(
    max_new_tokens: int, stop_ids: Iterable[int], pad_id: int, temperature: float | None = None, top_p: float = 1.0
) -> Any:
    """Return transformers' settings for greedy decoding, or for sampling at a temperature; made from scratch.

    They hold under `own_settings_off` only.
    """
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
    streamer: Any | None = None,
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
        streamer: of transformers' `generate`, for one prompt; only where that decodes (`backend.decoder`).
    """
    if not backend.left_pads and len({*map(len, prompts)}) > 1:
        found: dict[int, Rollout] = {}
        for width in sorted({*map(len, prompts)}):
            alike = [i for i, prompt in enumerate(prompts) if len(prompt) == width]
            chosen = [prompts[i] for i in alike]
            answers = generate(backend, chosen, max_new_tokens, stop_ids, pad_id, temperature, top_p, record_log_probs)
            found |= zip(alike, answers, strict=True)
        return [found[i] for i in range(len(prompts))]
    ids, mask = (x.to(backend.device) for x in left_padded(prompts, pad_id))
    backend.check_width(ids.shape[1] + max_new_tokens)
    sampling = Sampling(temperature, top_p, stop_ids, pad_id)
    batch = (backend, prompts, ids, mask, max_new_tokens, sampling)
    with _decoding(backend), _finite_only(), interruptible():
        if backend.decoder == "generate":
            tokens, recorded = _by_generate(*batch, record_log_probs, streamer)
        else:
            runner = runner_of if backend.decoder == "fixed" else None
            tokens, recorded = decode_in_steps(*batch, runner, record_log_probs)
    logs = [None] * len(prompts) if recorded is None else recorded.tolist()
    return [until_stop(row, stop_ids, log) for row, log in zip(tokens.tolist(), logs, strict=True)]


def _by_generate(
    backend: Backend,
    prompts: Sequence[Sequence[int]],
    ids: Tensor,
    mask: Tensor,
    max_new_tokens: int,
    sampling: Sampling,
    record_log_probs: bool,
    streamer: Any | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Decode with transformers' `generate`; returns tokens (B, n) and their log-probabilities, as `decode_in_steps`."""
    recorder = LogProbRecorder() if record_log_probs else None
    settings = (sampling.stop_ids, sampling.pad_id, sampling.temperature, sampling.top_p)
    output = backend.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=decoding_config(max_new_tokens, *settings),
        logits_processor=[_StepCounter(max_new_tokens), *([recorder] if recorder else [])],
        streamer=streamer,
        past_key_values=decoding_cache(backend, prompts, max_new_tokens) if backend.takes_cache else None,
    )
    start = ids.shape[1]
    return output[:, start:], recorder.finish(output, start) if recorder else None


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
