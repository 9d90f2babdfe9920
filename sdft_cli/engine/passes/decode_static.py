"""Decoding over fixed buffers: each step reads and writes the same tensors, whatever its token.

A step is then the same kernels at the same addresses, so a GPU can replay it as a CUDA graph (`replay.py`) instead of
waiting for thousands of launches. Prompts are prefilled as ever (`executors.decoding_cache`). Then keys and values stay
in buffers with room for all tokens that may follow, attention reads them whole behind a mask (`attend_to_slots`), and
transformers writes the states of recurrent layers in place. What a step needs to know lies in tensors that the step
itself moves on: the place to write, positions, and the mask.

Tokens are drawn between steps, by the functions that `generate` draws with and in its order, from the logits that the
trainer has too: of the trunk's states and in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, LinearAttentionLayer

from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.passes.attention import SLOTS, slot_attention, takes_kernels
from sdft_cli.engine.passes.decode_cache import RoomyLayer
from sdft_cli.engine.passes.depth_first import layers_obstacle
from sdft_cli.engine.passes.executors import decoding_cache

Runner = Callable[[], Tensor]
"""Runs the next step of a batch and returns its logits (B, V)."""


def static_obstacle(backend: Backend) -> str | None:
    """Say why a model cannot decode over fixed buffers, or None if it can."""
    base = backend.base
    config = base.config.get_text_config()
    if backend.own_attention or not takes_kernels(base):
        return backend.own_attention or "the model has an attention of its own"
    if config._attn_implementation not in ("sdpa", "sdft_tree"):
        return f"attention of type {config._attn_implementation} takes no boolean mask"
    missing = {"position_ids", "past_key_values"} - signature(backend.trunk.forward).parameters.keys()
    if missing:
        return f"its forward pass takes no {min(missing)}"
    return layers_obstacle(config)


class SlotLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of a layer, (B, heads, W, d): a step writes at `slot`, a tensor, and reads all."""

    def __init__(self, buffers: tuple[Tensor, Tensor], filled: int, slot: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(*buffers)
        for buffer in buffers:
            buffer[:, :, filled:] = 0  # what was never written may be NaN, which a weight of 0 does not take away
        self.keys, self.values = self.buffers = buffers
        self.slot = slot

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer.index_copy_(2, self.slot, new)
        return self.buffers


class StaticStep:
    """A step of a batch: the logits behind `token`, (B, 1), which the caller writes; all else moves on by itself."""

    def __init__(self, backend: Backend, cache: Cache, mask: Tensor, filled: int, slots: int) -> None:
        """Take a cache of prompts whose `mask` is (B, T), with `slots` places, of which the first `filled` are."""
        self.backend = backend
        self.token = mask.new_zeros((len(mask), 1))
        self.slot = torch.tensor([filled], device=mask.device)
        self.position = mask[:, :filled].sum(-1, keepdim=True)
        self.seen = torch.zeros((len(mask), 1, 1, slots), dtype=torch.bool, device=mask.device)
        self.seen[:, 0, 0, :filled] = mask[:, :filled].bool()
        self.cache = Cache(layers=[self._fixed(layer, filled) for layer in cache.layers])

    def _fixed(self, layer: Any, filled: int) -> Any:
        if not isinstance(layer, RoomyLayer):
            return layer
        assert layer.buffers is not None
        return SlotLayer(layer.buffers, filled, self.slot)

    def __call__(self) -> Tensor:
        """Run the step: (B, V) logits."""
        self.seen.index_fill_(3, self.slot, True)
        logits = _logits(self.backend, self.token, self.seen, self.position, self.cache)
        self.slot.add_(1)
        self.position.add_(1)
        return logits

    def addresses(self) -> list[int]:
        """Return where the cache lies; a step that is replayed writes there and nowhere else."""
        tensors: list[Any] = []
        layers: list[Any] = self.cache.layers
        for layer in layers:
            linear = isinstance(layer, LinearAttentionLayer)
            tensors += (layer.conv_states[0], layer.recurrent_states[0]) if linear else layer.buffers
        return [tensor.data_ptr() for tensor in tensors if tensor is not None]


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn: at a `temperature` (None: the most likely one) from the `top_p`; ends at `stop_ids`."""

    temperature: float | None
    top_p: float
    stop_ids: Sequence[int]
    pad_id: int

    def draw(self, logits: Tensor) -> Tensor:
        """Return a token (B,) for each row of logits (B, V) fp32, with torch's global generator."""
        from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

        if self.temperature is None:
            return logits.argmax(-1)
        ids: Any = None  # neither of them looks at what came before
        if self.temperature != 1.0:
            logits = TemperatureLogitsWarper(self.temperature)(ids, logits)
        if self.top_p < 1.0:
            logits = TopPLogitsWarper(self.top_p)(ids, logits)
        return torch.multinomial(logits.softmax(-1), num_samples=1).squeeze(1)


def static_decode(
    backend: Backend,
    prompts: Sequence[Sequence[int]],
    ids: Tensor,
    mask: Tensor,
    max_new_tokens: int,
    sampling: Sampling,
    runner: Callable[[StaticStep], Runner],
    record_log_probs: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Decode an answer to each prompt; the model is in its decoding mode.

    Args:
        prompts: token ids; `ids` and `mask`, (B, T), are the same padded on the left, on the model's device.
        runner: makes of a step what runs it again and again.
        record_log_probs: keep log p of each token, in nats, at temperature 1 and over the whole vocabulary.

    Returns tokens (B, n), padding behind a stop token, n up to `max_new_tokens`; and their log-probabilities, (B, n);
    on the CPU, so that nothing of a replayed step is under way when its graph goes.
    """
    step, logits = _prefilled(backend, prompts, ids, mask, max_new_tokens)
    run = runner(step)
    stops = torch.tensor(list(sampling.stop_ids), dtype=torch.long, device=ids.device)
    going = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    tokens: list[Tensor] = []
    recorded: list[Tensor] = []
    with _decoding_steps(backend):
        while True:
            scores = (run() if logits is None else logits).float()
            logits = None
            token = torch.where(going, sampling.draw(scores), sampling.pad_id)
            if record_log_probs:
                recorded.append(scores.log_softmax(-1).gather(-1, token[:, None]))
            tokens.append(token)
            going = going & ~torch.isin(token, stops)
            if len(tokens) == max_new_tokens or not going.any():
                break
            step.token.copy_(token[:, None])
    return torch.stack(tokens, 1).cpu(), torch.cat(recorded, 1).cpu() if record_log_probs else None


def _prefilled(
    backend: Backend, prompts: Sequence[Sequence[int]], ids: Tensor, mask: Tensor, max_new_tokens: int
) -> tuple[StaticStep, Tensor | None]:
    """Return the first step, and the logits behind the prompts; None where their last tokens are that step."""
    width = ids.shape[1]
    slots = -(-(width + max_new_tokens) // SLOTS) * SLOTS
    cache = decoding_cache(backend, prompts, slots - width)
    if cache.get_seq_length():
        step = StaticStep(backend, cache, mask, width - 1, slots)
        step.token.copy_(ids[:, -1:])
        return step, None
    logits = _logits(backend, ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), cache)
    return StaticStep(backend, cache, mask, width, slots), logits


def _logits(backend: Backend, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> Tensor:
    """Run tokens (B, T) behind a cache; return the logits (B, V) behind the last one, fp32 as in training."""
    states = backend.trunk_pass(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    ).last_hidden_state
    return backend.head.logits(states[:, -1])


@contextmanager
def _decoding_steps(backend: Backend) -> Iterator[None]:
    """Attention to slots, and experts as `generate` runs them for single tokens."""
    experts = getattr(backend.base, "_optimize_model_for_decode", nullcontext)
    with slot_attention(backend.base.config.get_text_config()), experts():
        yield
