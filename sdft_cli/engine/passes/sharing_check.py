"""Is sharing exact on the loaded model? A small step both ways, against a floor that is measured on the same model.

Two ways to run the same turns round differently, and a deep model in 16 bits amplifies that: 32 layers in bf16 are a
few percent from each other without any error. So what counts as rounding is no constant, and where sharing is further
from turns alone than `LEAST`, these are compared with other ways that share nothing and use nothing of ours: batches
with padding, and each turn in segments behind a cache as transformers fills it. The largest of these distances is the
floor, and sharing may be `FACTOR` floors from turns alone.

Compared are (docs/design.md has the study behind it, made by `python -m benchmarks.sharing_floor`):

- states: of each answer's positions, turn by turn, since a norm over all turns hides a fault of one;
- caches: of each prompt's last token, run behind the cache that decoding starts from, prompt by prompt;
- gradients: of the adapter, the same matrix of all layers together: rounding averages out there, and errors do not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from sdft_cli.engine.models.backend import Backend, Sharing
from sdft_cli.engine.passes.decode_cache import roomy_cache
from sdft_cli.engine.passes.depth_first import depth_first_obstacle
from sdft_cli.engine.passes.depth_first_order import even_spans
from sdft_cli.engine.passes.executors import answer_states, decoding_cache, keeps_a_cache, student_passes
from sdft_cli.engine.passes.packed import packing_obstacle
from sdft_cli.engine.passes.padded import Sequences, padded_states
from sdft_cli.engine.passes.start_check import decoding_gaps

FACTOR = {"states": 2.0, "gradients": 3.0, "caches": 4.0}
"""How many floors sharing may be from turns alone. A wrong row of a cache is another prompt's: far beyond that."""

LEAST = {torch.float32: 1e-4, torch.float16: 2e-3}
"""What always counts as rounding, by dtype, and needs no floor, which takes most of the time."""
LEAST_BF16 = 1e-2

MOST = {torch.float32: 1e-2}
MOST_16 = {"states": 0.1, "gradients": 0.2, "caches": 0.15}
"""A floor above this is no rounding, by dtype: then a way that shares nothing is wrong, and tells nothing."""
SPREAD = 3.0
"""Nor is it, if one of these ways is so many times as far from turns alone as another, and further than `LEAST`.

Not of caches, which are single positions: those of a real model in bf16 were 2.9 times as far one way as the other."""

SMALLEST = 0.01
"""A matrix whose gradient is less than this share of the whole is compared with that share: its own is rounding."""

DECODE_TOLERANCE = {torch.float32: 1e-3}
"""Nats by which log-probabilities of decoded tokens may differ from those of a pass over them, by dtype; 16 bits: 0.3.

That is coarse: what a cache holds is compared more finely by the states behind it.
"""

SEGMENT = 12
"""Tokens of a segment of the made-up turns."""

IDS = 96
PROMPTS = (((0, 60),), ((0, 38),), ((0, 38),), ((0, 19), (80, 83)), ((0, 56), (84, 88)), ((90, 93),))
ANSWERS = ((60, 66), (38, 53), (3, 4), (5, 10), (1, 7), (7, 11))
"""The made-up turns, as places in `IDS` made-up ids: one extends another, two have the same prompt, two leave it, one
shares nothing. Prefixes of 19, 37 and 56 tokens are shared; they are short, so that a single token matters."""


def sharing_obstacle(backend: Backend, kind: Sharing) -> str | None:
    """Say why a model cannot be run in a way, or None if it can."""
    if kind == "depth_first":
        return depth_first_obstacle(backend)
    return backend.own_attention or packing_obstacle(backend.base)


@dataclass(frozen=True)
class Distance:
    """How far sharing is from turns alone: relative, or in nats for `log-probabilities`.

    `floor`: how far ways that share nothing are from each other; None where it was not needed. `allowed`: what counts
    as rounding.
    """

    what: str
    found: float
    floor: float | None
    allowed: float

    @property
    def small(self) -> bool:
        """Whether it is rounding; a distance that is not a number is not."""
        return self.found <= self.allowed

    def __str__(self) -> str:
        return f"{self.what} {self.found:.1e}" + (f" (floor {self.floor:.1e})" if self.floor else "")


@dataclass(frozen=True)
class Refusal:
    """Why sharing is not taken unasked. `distance`: it runs, and this is how far it is from turns alone."""

    reason: str
    distance: Distance | None = None


@dataclass(frozen=True)
class Plain:
    """Turns alone: states (|y|, H) of each answer, (H,) of each prompt's last token, and the adapter's gradient."""

    states: list[Tensor]
    last: list[Tensor]
    gradient: list[Tensor | None]


class SharingCheck:
    """Compares ways to share with turns alone, on one backend; what is measured without sharing is measured once.

    B is made non-zero for the while, since A has no gradient at B = 0. Weights, gradients, modes and generators are
    left as they were.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        ids = [(7919 * i + 101) % backend.head.words for i in range(IDS)]
        self.prompts = [[x for part in parts for x in ids[slice(*part)]] for parts in PROMPTS]
        self.answers = [ids[slice(*part)] for part in ANSWERS]
        self.measured: dict[Sharing, list[Distance]] = {}

    def refusal(self, kind: Sharing) -> Refusal | None:
        """Say why a way to share is not to be taken; None: it is exact up to rounding."""
        obstacle = sharing_obstacle(self.backend, kind)
        if obstacle:
            return Refusal(obstacle)
        self.measured[kind] = []
        try:
            for distance in self.distances(kind):
                self.measured[kind].append(distance)
                if refused := self._unsound(distance) or _refused(kind, distance):
                    return refused
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).strip().splitlines() or ["no reason given"]
            return Refusal(f"{kind} passes end in an error on it ({type(error).__name__}: {reason[0]})")
        return None

    def summary(self, kind: Sharing) -> str:
        """Say how far a way to share is from turns alone, and how far ways are that share nothing."""
        found = ", ".join(str(distance) for distance in self.measured[kind] if distance.what in FACTOR)
        return f"checked on this model against turns alone: {found}"

    def distances(self, kind: Sharing) -> Iterator[Distance]:
        """Run the made-up step in a way and yield how far it is from turns alone, the cheap comparisons first.

        A few tokens are decoded before, as in a step, so that what decoding leaves behind is seen.
        """
        plain, backend = self.plain, self.backend
        with _ready(backend, kind):
            gap = float(decoding_gaps(backend, self.prompts[1::2]).max())
            states = answer_states(backend, self.prompts, self.answers, 0)
        parts = list(states.split([len(answer) for answer in self.answers]))
        yield self._distance("states", furthest(parts, plain.states))
        if keeps_a_cache(backend):
            with _ready(backend, kind):
                last = self._behind_the_cache()
            yield self._distance("caches", furthest(last, plain.last))
        yield Distance("log-probabilities", gap, None, DECODE_TOLERANCE.get(self.dtype, 0.3))
        if self._learns:
            with _ready(backend, kind):
                gradient = self._gradient(self._together)
            yield self._distance("gradients", self._from(plain, gradient))

    @cached_property
    def plain(self) -> Plain:
        """Turns alone, before anything else has run."""
        return self._alone()

    def _alone(self) -> Plain:
        with _ready(self.backend, "none"):
            whole = [self._padded([i])[0] for i in self._every]
            gradient = self._gradient(partial(self._in_batches, [[i] for i in self._every])) if self._learns else []
        return Plain(self._answers(whole), self._last(whole), gradient)

    @cached_property
    def ways(self) -> dict[str, list[float]]:
        """How far other ways that share nothing are from turns alone, by `FACTOR`'s names; the largest is the floor.

        They are batches with padding, and segments behind transformers' own cache. Turns alone run once more for that:
        what the way under test leaves behind is no part of the floor.
        """
        plain, every = self._alone(), self._every
        with _ready(self.backend, "none"):
            others = [self._padded(every)]
            if keeps_a_cache(self.backend):
                others.append([self._segmented(i) for i in every])
            ways = {
                "states": [furthest(self._answers(other), plain.states) for other in others],
                "caches": [furthest(self._last(other), plain.last) for other in others],
            }
            if self._learns:
                pairs = [[i, len(every) - 1 - i] for i in range(len(every) // 2)]
                found = [self._gradient(partial(self._in_batches, batches)) for batches in ([every], pairs)]
                ways["gradients"] = [self._from(plain, other) for other in found]
        return ways

    @property
    def _every(self) -> range:
        return range(len(self.prompts))

    @property
    def _learns(self) -> bool:
        return bool(self.backend.parameters())

    @property
    def dtype(self) -> torch.dtype:
        """Of the model's weights."""
        dtype: torch.dtype = self.backend.head.weight.dtype
        return dtype

    @property
    def least(self) -> float:
        """What always counts as rounding in this dtype."""
        return LEAST.get(self.dtype, LEAST_BF16)

    def _distance(self, what: str, found: float) -> Distance:
        if found <= self.least:
            return Distance(what, found, None, self.least)
        floor = max(self.ways[what])
        return Distance(what, found, floor, max(FACTOR[what] * floor, self.least))

    def _unsound(self, distance: Distance) -> Refusal | None:
        """Say that the floor of a distance is no rounding itself: then nothing can be told from it."""
        what = distance.what
        if distance.floor is None:
            return None
        ways, most = self.ways[what], MOST.get(self.dtype, MOST_16[what])
        if what != "caches":
            most = min(most, max(self.least, SPREAD * min(ways)))
        if max(ways) <= most:
            return None
        reason = f"{what} of ways that share nothing differ by {max(ways):.1e}, which is no rounding"
        return Refusal(reason, Distance(what, max(ways), max(ways), most))

    @torch.no_grad()
    def _padded(self, turns: Sequence[int]) -> list[Tensor]:
        return padded_states(self.backend, [[*self.prompts[i], *self.answers[i]] for i in turns], 0)

    @torch.no_grad()
    def _segmented(self, turn: int) -> Tensor:
        """Return the states of a turn alone, run in segments behind a cache of transformers' own."""
        backend, row = self.backend, [*self.prompts[turn], *self.answers[turn]]
        cache = roomy_cache(backend.base.config.get_text_config(), len(row))
        with backend.decoding():
            parts = [
                backend.trunk_pass(
                    input_ids=torch.tensor([row[slice(*span)]], device=backend.device),
                    position_ids=torch.arange(*span, device=backend.device)[None],
                    past_key_values=cache,
                    use_cache=True,
                ).last_hidden_state[0]
                for span in even_spans(0, len(row), SEGMENT)
            ]
        return torch.cat(parts)

    @torch.no_grad()
    def _behind_the_cache(self) -> list[Tensor]:
        """Return the state of each prompt's last token, run behind the cache that decoding starts from."""
        backend, lengths = self.backend, [len(prompt) for prompt in self.prompts]
        cache = decoding_cache(backend, self.prompts, 1)
        mask = torch.tensor([[0] * (max(lengths) - n) + [1] * n for n in lengths], device=backend.device)
        with backend.decoding():
            states = backend.trunk_pass(
                input_ids=torch.tensor([[prompt[-1]] for prompt in self.prompts], device=backend.device),
                attention_mask=mask,
                position_ids=torch.tensor([[n - 1] for n in lengths], device=backend.device),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
        return list(states[:, 0])

    def _answers(self, rows: Sequence[Tensor]) -> list[Tensor]:
        turns = zip(rows, self.prompts, self.answers, strict=True)
        return [row[len(x) - 1 : len(x) - 1 + len(y)] for row, x, y in turns]

    def _last(self, rows: Sequence[Tensor]) -> list[Tensor]:
        return [row[len(x) - 1] for row, x in zip(rows, self.prompts, strict=True)]

    def _in_batches(self, batches: Sequence[Sequence[int]]) -> None:
        for turns in batches:
            prompts, answers = [self.prompts[i] for i in turns], [self.answers[i] for i in turns]
            _go_back(_answer_rows(self.backend, prompts, answers))

    def _together(self) -> None:
        for _, part in student_passes(self.backend, self.prompts, self.answers, 0, 10_000):
            _go_back(part)

    def _gradient(self, run: Callable[[], None]) -> list[Tensor | None]:
        """Return what a function leaves as gradient of each of the adapter's parameters; None: it did not reach it."""
        for parameter in self.backend.parameters():
            parameter.grad = None
        run()
        return [parameter.grad for parameter in self.backend.parameters()]

    def _from(self, plain: Plain, found: list[Tensor | None]) -> float:
        return gradient_distance(matrices(self.backend), found, plain.gradient)


def _refused(kind: Sharing, distance: Distance) -> Refusal | None:
    if distance.small:
        return None
    if distance.what == "log-probabilities":
        reason = f"tokens decoded behind {kind} prompts have other log-probabilities than a pass gives"
        return Refusal(f"{reason}, by {distance.found:.1e} nats", distance)
    return Refusal(
        f"{kind} {distance.what} differ from those of independent turns by {distance.found:.1e}, where ways that share "
        f"nothing differ by {distance.floor or 0.0:.1e} (up to {distance.allowed:.1e} counts as rounding)",
        distance,
    )


def furthest(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest relative distance (L2) of two tensors that belong together."""
    pairs = zip(found, expected, strict=True)
    return max(float((a.float() - b.float()).norm() / b.float().norm()) for a, b in pairs)


def matrices(backend: Backend) -> list[str]:
    """Return which matrix of a layer each of the adapter's parameters belongs to: its name without numbers."""
    names = [name for name, p in backend.model.named_parameters() if p.requires_grad]
    return [re.sub(r"\.\d+\.", ".*.", name) for name in names]


def gradient_distance(
    groups: Sequence[str], found: Sequence[Tensor | None], expected: Sequence[Tensor | None]
) -> float:
    """Return the largest relative distance (L2) of the tensors of one group, which are taken together.

    What is missing on both sides does not count; on one side, it is zero there.
    """
    far: dict[str, float] = dict.fromkeys(groups, 0.0)
    own: dict[str, float] = dict.fromkeys(groups, 0.0)
    for group, a, b in zip(groups, found, expected, strict=True):
        difference = a if b is None else b if a is None else a.float() - b.float()
        far[group] += 0.0 if difference is None else float(difference.float().norm()) ** 2
        own[group] += 0.0 if b is None else float(b.float().norm()) ** 2
    least = SMALLEST**2 * sum(own.values())
    return max((far[group] / max(own[group], least)) ** 0.5 if far[group] else 0.0 for group in far)


def _answer_rows(backend: Backend, prompts: Sequences, answers: Sequences) -> Tensor:
    rows = padded_states(backend, [[*x, *y] for x, y in zip(prompts, answers, strict=True)], 0)
    return torch.cat([r[len(x) - 1 : len(x) - 1 + len(y)] for r, x, y in zip(rows, prompts, answers, strict=True)])


def _go_back(states: Tensor) -> None:
    """Go back from something uneven."""
    (states.float() * torch.linspace(-1, 1, states.shape[1], device=states.device)).sum().backward()


@contextmanager
def _ready(backend: Backend, kind: Sharing) -> Iterator[None]:
    """The backend runs a kind of sharing with an adapter that does something, without dropout; then all is put back."""
    own, config = (backend.sharing, backend.segment_tokens), backend.base.config.get_text_config()
    attention = config._attn_implementation
    backend.sharing, backend.segment_tokens = kind, SEGMENT
    try:
        with _adapter_moved(backend), _without_dropout(backend.model):
            yield
    finally:
        backend.sharing, backend.segment_tokens = own
        config._attn_implementation = attention


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """No dropout, whatever mode the model is in: it would draw another mask each time."""
    own = [(module, module.p) for module in model.modules() if isinstance(module, nn.Dropout)]
    try:
        for module, _ in own:
            module.p = 0.0
        yield
    finally:
        for module, p in own:
            module.p = p


@contextmanager
def _adapter_moved(backend: Backend) -> Iterator[None]:
    """The adapter's parameters with noise added; values and gradients are put back untouched."""
    parameters = backend.parameters()
    own = [(p.data, p.grad) for p in parameters]
    generator = torch.Generator().manual_seed(0)
    try:
        for p in parameters:
            p.data = p.data + 0.02 * torch.randn(p.shape, generator=generator).to(p)
        yield
    finally:
        for p, (data, gradient) in zip(parameters, own, strict=True):
            p.data, p.grad = data, gradient
