"""Decoding in steps of our own: one loop, and two kinds of step.

- `FixedStep`, for a GPU: each step reads and writes the same tensors, whatever its token. It is then the same kernels
  at the same addresses, so a GPU can replay it as a CUDA graph (`replay.py`) instead of waiting for thousands of
  launches. Keys and values stay in buffers with room for all tokens that may follow, attention reads them whole behind
  a mask (`attend_to_slots`), and transformers writes the states of recurrent layers in place. What a step needs to know
  lies in tensors that the step itself moves on: the place to write, positions, and the mask.
- `GrowingStep`, for a CPU, which waits for memory and not for launches: attention reads what has been written, and
  weights may be packed for products of few rows (`engine/kernels/packed.py`).

Prompts are prefilled as ever (`executors.decoding_cache`). Tokens are drawn between steps, from the distribution that
transformers' warpers make and by the logits that the trainer has too: of the trunk's states and in fp32.

What is drawn for a row depends on its own seed and on how many tokens it has, and on nothing that is decoded with it
(`row_seeds`): rows may be decoded together or apart, in one process or in several.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, LinearAttentionLayer

from sdft_cli.engine.kernels.packed import MOST_ROWS, packed_product, packed_products
from sdft_cli.engine.kernels.products import products
from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.models.head import Head
from sdft_cli.engine.models.updates import updates_beside
from sdft_cli.engine.passes.attention import SLOTS, slot_attention, takes_kernels
from sdft_cli.engine.passes.decode_cache import RoomyLayer
from sdft_cli.engine.passes.depth_first import layers_obstacle
from sdft_cli.engine.passes.executors import decoding_cache, keeps_a_cache
from sdft_cli.engine.passes.timing import decoded
from sdft_cli.errors import VerificationError

Runner = Callable[[], Tensor]
"""Runs the next step of a batch and returns its logits (B, V)."""

PACKED_FROM = 8
"""Weights are packed for so many new tokens or more: packing takes as long as some steps save."""
FIRST = 64
"""Words among which a nucleus is looked for first."""
SHARES = (0x3F800000 >> 16) + 1
"""How many leading 16 bits a number from 0 to 1 in fp32 can have."""


def steps_obstacle(backend: Backend) -> str | None:
    """Say why a model cannot decode in these steps, or None if it can."""
    base = backend.base
    config = base.config.get_text_config()
    if backend.own_attention or not takes_kernels(base):
        return backend.own_attention or "the model has an attention of its own"
    if config._attn_implementation not in ("sdpa", "sdft_tree"):
        return f"attention of type {config._attn_implementation} takes no boolean mask"
    missing = {"position_ids", "past_key_values"} - signature(backend.trunk.forward).parameters.keys()
    if missing:
        return f"its forward pass takes no {min(missing)}"
    if not keeps_a_cache(backend):
        return "the model keeps a cache of its own"
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


class FixedStep:
    """A step over fixed buffers: the logits behind `token`, (B, 1), which the caller writes."""

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
        logits = _logits(self.backend, self.backend.head, self.token, self.seen, self.position, self.cache)
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


class GrowingStep:
    """A step over a cache that grows: the logits behind `token`, (B, 1), which the caller writes."""

    def __init__(self, backend: Backend, cache: Cache, mask: Tensor, filled: int, new_tokens: int) -> None:
        """Take a cache of prompts whose `mask` is (B, T), of which the first `filled` places are written."""
        self.backend, self.cache, self.filled = backend, cache, filled
        self.head = backend.head
        self.token = mask.new_zeros((len(mask), 1))
        self.position = mask[:, :filled].sum(-1, keepdim=True)
        self.seen = torch.ones((len(mask), 1, 1, filled + new_tokens), dtype=torch.bool, device=mask.device)
        self.seen[:, 0, 0, :filled] = mask[:, :filled].bool()

    def __call__(self) -> Tensor:
        """Run the step: (B, V) logits."""
        self.filled += 1
        seen = self.seen[..., : self.filled]
        logits = _logits(self.backend, self.head, self.token, seen, self.position, self.cache)
        self.position += 1
        return logits

    @contextmanager
    def packed(self, new_tokens: int) -> Iterator[None]:
        """Weights are packed for the rows of this batch if that pays for so many tokens, and as they are now.

        Products are exact: memory bounds them, whatever their factors are.
        """
        rows = len(self.token)
        if not self.backend.packed_steps or new_tokens < PACKED_FROM or rows > MOST_ROWS:
            with products("highest"):
                yield
            return
        head, halves = self.backend.head, self.backend.halves
        with (
            products("highest"),
            updates_beside(self.backend.trunk, rows, halves) as done,
            packed_products(self.backend.trunk, rows, halves, done),
        ):
            half = halves.product(head.weight) if halves else None
            self.head = replace(head, product=half or packed_product(head.weight, rows))
            try:
                yield
            finally:
                self.head = head


Step = FixedStep | GrowingStep


GOLDEN, FIRST_FACTOR, SECOND_FACTOR = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""The constants of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""


def row_seeds(seed: int, names: Iterable[object]) -> list[int]:
    """Return a seed of 64 bits for each row that is sampled, of the seed of them all and the row's own name.

    A name is what tells a row from the others wherever it is decoded: its place in the step, or its record.
    """
    return [int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8]) for name in names]


def splitmix(states: Tensor, outputs: Tensor) -> Tensor:
    """Return outputs of SplitMix64, counted from 0, of the generators with these states; int64, whose bits they are.

    An output is a function of its state and its number, so none before it has to be made. int64 wraps as uint64 does.
    """
    mixed = states + (outputs + 1) * _signed(GOLDEN)
    for shift, factor in ((30, FIRST_FACTOR), (27, SECOND_FACTOR)):
        mixed = (mixed ^ _shifted(mixed, shift)) * _signed(factor)
    return mixed ^ _shifted(mixed, 31)


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


def _shifted(words: Tensor, count: int) -> Tensor:
    """Shift to the right and fill with zeros; torch fills with the sign."""
    return (words >> count) & ((1 << (64 - count)) - 1)


def uniforms(words: Tensor) -> Tensor:
    """Return a number inside (0, 1), fp64, of the upper 52 bits of each word."""
    return (_shifted(words, 12).double() + 0.5) * 2.0**-52


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn: at a `temperature` (None: the most likely one) from the `top_p`; ends at `stop_ids`.

    `seeds`: of each row, from `row_seeds`; greedy decoding needs none.
    """

    temperature: float | None
    top_p: float
    stop_ids: Sequence[int]
    pad_id: int
    seeds: Sequence[int] = ()

    def places(self, new_tokens: int, device: torch.device) -> Tensor | None:
        """Return a seed (B, new_tokens) for each token of each row; None where decoding is greedy."""
        if self.temperature is None:
            return None
        states = torch.tensor([_signed(seed) for seed in self.seeds], dtype=torch.long, device=device)
        return splitmix(states[:, None], torch.arange(new_tokens, device=device))

    def draw(self, logits: Tensor, places: Tensor | None = None) -> Tensor:
        """Return a token (B,) for each row of logits (B, V) fp32, by the seeds (B,) of these tokens.

        Raises:
            VerificationError: logits to draw from are not finite.
        """
        if self.temperature is None:
            return logits.argmax(-1)
        assert places is not None
        shares = (logits / self.temperature).softmax(-1)
        if not bool(shares[:, 0].isfinite().all()):  # all of a row's shares are NaN, or none
            raise VerificationError(
                "The model's logits are not finite, so nothing can be sampled: start again with a lower "
                "optim.learning_rate or with dtype=float32; the checkpoints from before are kept."
            )
        if self.top_p < 1.0:
            shares, words = nucleus(shares, self.top_p)
        else:
            words = torch.arange(shares.shape[-1], device=shares.device).expand_as(shares)
        return words.gather(-1, first_to_arrive(shares, words, places)[:, None])[:, 0]


def first_to_arrive(shares: Tensor, words: Tensor, places: Tensor) -> Tensor:
    """Return the index (B,) of the word that is drawn: with a chance of its share among the `shares` (B, n).

    Each word arrives after a time of its own, exponential with its share as the rate, and the first one is drawn; in
    fp64. A word's time depends on its id (`words`, (B, n)) and on the token's seed alone. So where rounding moves the
    shares by a little, another word is drawn with a chance of about as much. (By the place of one number among sums of
    shares, each of the sums would be moved: with thousands of words, a chance of a thousand times as much.)
    """
    times = -uniforms(splitmix(places[:, None], words)).log() / shares.double()
    return times.argmin(-1)


def nucleus(shares: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Return the fewest most likely words whose shares reach `top_p`, at least one, as transformers' TopPLogitsWarper.

    Of the `FIRST` most likely words if they reach it in all rows, else of as many as are needed: sorting all of a large
    vocabulary takes a good part of a small model's step.

    Args:
        shares: (B, V), each row adds up to 1.
        top_p: below 1.

    Returns shares (B, n), 0 behind the last word of a row's nucleus and not normalised, and the words (B, n).
    """
    every = shares.shape[-1]
    for count in (min(FIRST, every), None, every):
        found, words = shares.topk(_needed(shares, top_p) if count is None else count)
        before = found.cumsum(-1) - found
        if count == every or bool((before[:, -1] >= top_p).all()):
            break
    return found.masked_fill(before >= top_p, 0.0), words


def _needed(shares: Tensor, top_p: float) -> int:
    """Return how many of the most likely words reach `top_p` in each row (B, V), and one more; or, by rounding, nearly.

    Words are counted by the leading 16 bits of their shares, which are in the order of positive floats.
    """
    shares = shares.float()
    kinds = (shares.view(torch.int32) >> 16).long()
    mass = shares.new_zeros((len(shares), SHARES)).scatter_add_(1, kinds, shares)
    short = mass.flip(-1).cumsum(-1) < top_p  # from the largest shares on
    least = (SHARES - 1 - short.sum(-1, keepdim=True)).clamp(min=0)
    lowest = (least.int() << 16).view(torch.float32)
    return min(shares.shape[-1], int((shares >= lowest).sum(-1).max()) + 1)


def decode_in_steps(
    backend: Backend,
    prompts: Sequence[Sequence[int]],
    ids: Tensor,
    mask: Tensor,
    max_new_tokens: int,
    sampling: Sampling,
    runner: Callable[[FixedStep], Runner] | None = None,
    record_log_probs: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Decode an answer to each prompt; the model is in its decoding mode.

    Args:
        prompts: token ids; `ids` and `mask`, (B, T), are the same padded on the left, on the model's device.
        runner: makes of a step over fixed buffers what runs it again and again; None: steps over a growing cache.
        record_log_probs: keep log p of each token, in nats, at temperature 1 and over the whole vocabulary.

    Returns tokens (B, n), padding behind a stop token, n up to `max_new_tokens`; and their log-probabilities, (B, n);
    on the CPU, so that nothing of a replayed step is under way when its graph goes.
    """
    step, logits = _prefilled(backend, prompts, ids, mask, max_new_tokens, fixed=runner is not None)
    run = runner(step) if runner and isinstance(step, FixedStep) else step
    stops = torch.tensor(list(sampling.stop_ids), dtype=torch.long, device=ids.device)
    going = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    tokens: list[Tensor] = []
    recorded: list[Tensor] = []
    places = sampling.places(max_new_tokens, ids.device)
    with _decoding_steps(backend, step, max_new_tokens):
        while True:
            scores = (run() if logits is None else logits).float()
            logits = None
            drawn = sampling.draw(scores, None if places is None else places[:, len(tokens)])
            token = torch.where(going, drawn, sampling.pad_id)
            if record_log_probs:
                recorded.append(scores.gather(-1, token[:, None]) - scores.logsumexp(-1, keepdim=True))
            tokens.append(token)
            decoded(len(tokens), max_new_tokens)
            going = going & ~torch.isin(token, stops)
            if len(tokens) == max_new_tokens or not going.any():
                break
            step.token.copy_(token[:, None])
    return torch.stack(tokens, 1).cpu(), torch.cat(recorded, 1).cpu() if record_log_probs else None


def _prefilled(
    backend: Backend, prompts: Sequence[Sequence[int]], ids: Tensor, mask: Tensor, max_new_tokens: int, fixed: bool
) -> tuple[Step, Tensor | None]:
    """Return the first step, and the logits behind the prompts; None where their last tokens are that step."""
    width = ids.shape[1]
    room = -(-(width + max_new_tokens) // SLOTS) * SLOTS - width if fixed else max_new_tokens
    cache = decoding_cache(backend, prompts, room)

    def first(filled: int) -> Step:
        if fixed:
            return FixedStep(backend, cache, mask, filled, width + room)
        return GrowingStep(backend, cache, mask, filled, width + room - filled)

    if cache.get_seq_length():
        step = first(width - 1)
        step.token.copy_(ids[:, -1:])
        return step, None
    logits = _logits(backend, backend.head, ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), cache)
    return first(width), logits


def _logits(backend: Backend, head: Head, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> Tensor:
    """Run tokens (B, T) behind a cache; return the logits (B, V) behind the last one, fp32 as in training."""
    states = backend.trunk_pass(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    ).last_hidden_state
    return head.logits(states[:, -1])


@contextmanager
def _decoding_steps(backend: Backend, step: Step, new_tokens: int) -> Iterator[None]:
    """The attention and the products of a kind of step, and experts as `generate` runs them for single tokens."""
    experts = getattr(backend.base, "_optimize_model_for_decode", nullcontext)
    if isinstance(step, GrowingStep):
        kernels = step.packed(new_tokens)
    else:
        kernels = slot_attention(backend.base.config.get_text_config())
    with kernels, experts():
        yield
