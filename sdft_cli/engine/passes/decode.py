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
from sdft_cli.errors import UsageError


@dataclass(frozen=True)
class Rollout:
    """Sampled token ids, the token that ends the turn included if it was sampled within the cap.

    `log_probs`, where they were recorded: log p of each id in nats, as the sampler's forward pass had it, at
    temperature 1 and over the whole vocabulary. `staleness`: updates of the student that its sampler had not seen.
    """

    ids: list[int]
    finished: bool
    log_probs: list[float] | None = None
    staleness: int = 0


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


class _Drawer:
    """A logits processor that draws each row's token and leaves no other: what greedy decoding takes then."""

    def __init__(self, sampling: Sampling, places: Tensor) -> None:
        self.sampling, self.places, self.count = sampling, places, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        place = min(self.count, self.places.shape[1] - 1)  # a step that `generate` takes back draws again
        token = self.sampling.draw(scores.float(), self.places[:, place])
        self.count += 1
        return torch.full_like(scores, -torch.inf).scatter_(-1, token[:, None], 0.0)


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


def decoding_config(max_new_tokens: int, stop_ids: Iterable[int], pad_id: int) -> Any:
    """Return transformers' settings for greedy decoding, made from scratch; they hold under `own_settings_off` only."""
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=pad_id,
        use_cache=True,
        do_sample=False,
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
    seeds: Sequence[int] | None = None,
) -> list[Rollout]:
    """Decode an answer to each prompt with whatever weights are on.

    The distribution is exactly the model's at this temperature and top_p; the model's generation config has no say.

    Args:
        prompts: token ids; they may differ in length. Where the backend shares, common prefixes are prefilled once.
        max_new_tokens: cap on each answer.
        stop_ids: any of them ends an answer and is its last id.
        pad_id: fills rows; masked.
        temperature, top_p: of sampling; `temperature=None` is greedy decoding.
        record_log_probs: keep the sampler's log-probabilities of the sampled tokens.
        streamer: of transformers' `generate`, for one prompt; only where that decodes (`backend.decoder`).
        seeds: of each prompt (`row_seeds`), 64 bits: what it samples depends on no other prompt. None: sampling takes
            them from torch's global generator.

    Raises:
        VerificationError: logits to sample from are not finite.
    """
    if temperature is None:
        seeds = ()
    elif seeds is None:
        seeds = torch.randint(2**62, (len(prompts),)).tolist()
    if not backend.left_pads and len({*map(len, prompts)}) > 1:
        found: dict[int, Rollout] = {}
        for width in sorted({*map(len, prompts)}):
            alike = [i for i, prompt in enumerate(prompts) if len(prompt) == width]
            chosen = [prompts[i] for i in alike]
            own = [seeds[i] for i in alike] if seeds else None
            settings = (max_new_tokens, stop_ids, pad_id, temperature, top_p, record_log_probs)
            answers = generate(backend, chosen, *settings, seeds=own)
            found |= zip(alike, answers, strict=True)
        return [found[i] for i in range(len(prompts))]
    ids, mask = (x.to(backend.device) for x in left_padded(prompts, pad_id))
    backend.check_width(ids.shape[1] + max_new_tokens)
    sampling = Sampling(temperature, top_p, stop_ids, pad_id, seeds)
    batch = (backend, prompts, ids, mask, max_new_tokens, sampling)
    with _decoding(backend), interruptible():
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
    places = sampling.places(max_new_tokens, ids.device)
    output = backend.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=decoding_config(max_new_tokens, sampling.stop_ids, sampling.pad_id),
        logits_processor=[
            _StepCounter(max_new_tokens),
            *([recorder] if recorder else []),
            *([] if places is None else [_Drawer(sampling, places)]),
        ],
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
