"""Prefix-shared passes with one live path: the gradient of independent turns, a common trunk computed once.

The turns of a session are a tree. Each runs from the root to the end of its answer `y`; `A` and `B` are shared:

    root --- A --- B --- x1 y1        order: A  B  (x1 y1)  (x2 y2)  B'  (x3 y3)  A'
             |     +---- x2 y2        A, B: forward without gradient
             +---------- x3 y3        ( ): a tail, forward and backward;  B', A': forward again and backward

1. Walk the tree depth-first. Keep what the model remembers of the live path only: keys and values of each attention
   layer, and the states of recurrent layers at every segment boundary.
2. At a turn's tail, run forward with gradient against the path as a constant, and back from the turn's loss. That gives
   the tail's part of the adapter's gradient, and the gradient in the path's keys, values and last states, which is
   summed (fp32) over all tails and segments below.
3. When the walk leaves a shared segment, that sum is complete. Run the segment once more with gradient, and back from
   the sum in its keys, values and final states. That reaches the adapter, and the path before it.

By the chain rule this is the gradient of the sum of all losses. Shared tokens cost two forward passes and a backward
pass, whatever the number of turns. Alive at the worst moment: activations of one segment, keys and values of the
longest path twice (once as gradient), recurrent states once per boundary. Only prompts without their last token are
shared; long parts and tails are cut into segments, the tail's last one keeps its graph while the loss is computed.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.passes.attention import forget_masks, path_attention
from sdft_cli.engine.passes.decode_cache import batch_cache
from sdft_cli.engine.passes.depth_first_order import SHORTEST_SHARED, Enter, Span, Tail, walk
from sdft_cli.engine.passes.live_cache import LINEAR, Path
from sdft_cli.engine.passes.padded import Sequences, context_obstacle
from sdft_cli.engine.passes.timing import Phases
from sdft_cli.errors import UsageError


@dataclass
class _Boundary:
    """The path's first `length` tokens: states of the recurrent layers there, and the sums of their gradients.

    `reached`: a loss below depends on this part of the path.
    """

    length: int
    states: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor | None] = field(default_factory=list)
    reached: bool = False

    def add(self, inputs: Sequence[Tensor]) -> None:
        """Add what reached a pass's copies of the states."""
        own = self.gradients or [None] * len(inputs)
        self.gradients = [
            old if x.grad is None else x.grad if old is None else old + x.grad
            for old, x in zip(own, inputs, strict=True)
        ]
        self.reached = True


@dataclass
class _Pass:
    """A forward pass with gradient: its hidden states (n, H), and the recurrent states that it started from."""

    hidden: Tensor
    inputs: list[Tensor]


class _Walker:
    """Runs spans of sequences on one path."""

    def __init__(self, backend: Backend, rows: Sequences, gradients: bool, phases: Phases | None = None) -> None:
        self.backend, self.rows, self.phases = backend, rows, phases or Phases()
        self.config = backend.base.config.get_text_config()
        self.path = Path(self.config, max(map(len, rows)), gradients)

    def run(self, sequence: int, span: Span) -> Tensor:
        """Run the tokens of a span behind the path as it is; return their last hidden states (n, H)."""
        device = self.backend.device
        with self.phases("student"), path_attention(self.config):
            output = self.backend.trunk_pass(
                input_ids=torch.tensor([self.rows[sequence][slice(*span)]], device=device),
                position_ids=torch.arange(*span, device=device)[None],
                past_key_values=self.path.cache,
                use_cache=True,
            )
        states: Tensor = output.last_hidden_state[0]
        return states

    @torch.no_grad()
    def extend(self, sequence: int, span: Span, before: _Boundary, wanted: Span = (0, 0)) -> tuple[Tensor, _Boundary]:
        """Run a span without gradient; return its hidden states at `wanted` positions and the boundary behind it."""
        self.path.rewind(before.length, before.states)
        hidden = self.run(sequence, span)[_part(span, wanted, span[0])].clone()
        return hidden, _Boundary(span[1], self.path.states())

    @torch.enable_grad()
    def record(self, sequence: int, span: Span, before: _Boundary) -> _Pass:
        """Run a span with gradient, against the path as a constant."""
        inputs = [state.detach().requires_grad_() for state in before.states]
        self.path.rewind(before.length, inputs)
        return _Pass(self.run(sequence, span), inputs)

    def back(
        self, found: _Pass, before: _Boundary, after: _Boundary, hidden: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """Go back through the last pass from all that its tokens did: keys, values, states, and hidden states."""
        roots = self.path.take_gradients(before.length, after.length)
        if after.gradients:
            roots += [(x, g) for x, g in zip(self.path.states(), after.gradients, strict=True) if g is not None]
        if hidden:
            roots.append(hidden)
        if self.backend.sharded:  # a layer is put together where a gradient reaches its output, not its keys
            roots.append((found.hidden, torch.zeros_like(found.hidden)))
        roots = [(x, g) for x, g in roots if x.requires_grad and len(x)]
        if roots:  # none where the adapter is above all keys and values
            with self.phases("backward"):
                torch.autograd.backward([x for x, _ in roots], [g for _, g in roots])
        before.add(found.inputs)

    def tail(self, tail: Tail, start: _Boundary, wanted: Span) -> Iterator[Tensor]:
        """Run a tail forward, yield its `wanted` states, and go back from the gradient that they were given.

        The last span runs only once.
        """
        *early, last = tail.spans
        boundaries, states = [start], []
        for span in early:
            hidden, boundary = self.extend(tail.sequence, span, boundaries[-1], wanted)
            states.append(hidden)
            boundaries.append(boundary)
        recorded = self.record(tail.sequence, last, boundaries[-1])
        states.append(recorded.hidden[_part(last, wanted, last[0])].detach())
        chosen = torch.cat(states).requires_grad_()
        yield chosen
        if chosen.grad is None:
            self.path.take_gradients(*last)
            return
        after = _Boundary(last[1])
        for span in reversed(tail.spans):
            before = boundaries.pop()
            if span != last:
                recorded = self.record(tail.sequence, span, before)
            gradient = chosen.grad[_part(span, wanted, wanted[0])]
            self.back(recorded, before, after, (recorded.hidden[_part(span, wanted, span[0])], gradient))
            after = before


def _part(span: Span, wanted: Span, origin: int) -> slice:
    """Return where the positions that two spans have in common are, counted from `origin`; perhaps nowhere."""
    start = max(span[0], wanted[0])
    return slice(start - origin, max(start, min(span[1], wanted[1])) - origin)


def _rows(prompts: Sequences, answers: Sequences) -> list[list[int]]:
    """Return the tokens to run: an answer's last token predicts nothing, but a row has two behind the shared ones."""
    return [[*x, *y[: max(1, len(y) - 1)]] for x, y in zip(prompts, answers, strict=True)]


def _wanted(prompt: Sequence[int], answer: Sequence[int]) -> Span:
    """Return the positions whose states predict the answer."""
    return len(prompt) - 1, len(prompt) - 1 + len(answer)


def layers_obstacle(config: Any) -> str | None:
    """Say which layers of a (text) configuration are neither full attention nor a gated delta rule; None: all are."""
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if kinds - {LINEAR}:
        return f"the model has {', '.join(sorted(kinds - {LINEAR}))} layers"
    if kinds and not hasattr(config, "linear_conv_kernel_dim"):
        return "its linear attention is no gated delta rule"
    return context_obstacle(config)


def path_obstacle(model: nn.Module, config: Any) -> str | None:
    """Say why a model, with its adapter and with this (text) configuration, cannot run along a path; None: it can."""
    dropout = any(isinstance(module, nn.Dropout) and module.p for module in model.modules())
    if dropout or bool(getattr(config, "attention_dropout", 0.0)):
        found = "it has dropout, and a shared token would be dropped for all turns or for none"
        return layers_obstacle(config) or found
    return layers_obstacle(config)


def depth_first_obstacle(backend: Backend) -> str | None:
    """Say why a backend cannot run its model along a path, or None if it can."""
    return backend.own_attention or path_obstacle(backend.model, backend.base.config.get_text_config())


@contextmanager
def _on_a_path(backend: Backend) -> Iterator[None]:
    """The mode in which a model can run along a path: in train mode, gradient checkpointing takes the cache away."""
    obstacle = depth_first_obstacle(backend)
    if obstacle:
        raise UsageError(f"This model cannot run depth-first: {obstacle}; use prefix_sharing=none.")
    try:
        with backend.decoding():
            yield
    finally:
        forget_masks()


def depth_first_passes(
    backend: Backend,
    prompts: Sequences,
    answers: Sequences,
    segment_tokens: int,
    shortest_shared: int = SHORTEST_SHARED,
    phases: Phases | None = None,
) -> Generator[tuple[list[int], Tensor], None, None]:
    """Yield each turn, in lexical order of the prompts, and the hidden states (|y|, H) that predict its answer.

    Position |x| - 1 + t predicts y_t. What goes back from the states before the next turn is asked for reaches the
    adapter by the end, as a backward pass of each turn alone would; the model is in eval mode until then.

    Args:
        backend: with the student's weights on.
        prompts, answers: token ids x_i and y_i; in any relation to each other. Turns without answer are left out.
        segment_tokens: most tokens of a pass, at least 3; more take more memory and less time.
        shortest_shared: a common prefix is computed once if it is this many tokens longer than one inside it.
        phases: where `student` (forward passes) and `backward` are counted.

    Raises:
        UsageError: the model cannot run this way; the sentence says why.
        DataError: a sequence is longer than the library takes whole.
    """
    used = [i for i, answer in enumerate(answers) if answer]
    if not used:
        return
    rows = _rows([prompts[i] for i in used], [answers[i] for i in used])
    backend.check_width(max(map(len, rows)))
    with _on_a_path(backend):
        walker = _Walker(backend, rows, gradients=True, phases=phases)
        boundaries = [_Boundary(0)]
        entered: list[Enter] = []
        for event in walk(rows, [len(prompts[i]) - 1 for i in used], segment_tokens, shortest_shared):
            if isinstance(event, Enter):
                entered.append(event)
                boundaries.append(walker.extend(event.sequence, event.span, boundaries[-1])[1])
            elif isinstance(event, Tail):
                turn = used[event.sequence]
                for states in walker.tail(event, boundaries[-1], _wanted(prompts[turn], answers[turn])):
                    yield [turn], states
            else:
                segment, after = entered.pop(), boundaries.pop()
                if after.reached:
                    walker.back(walker.record(segment.sequence, segment.span, boundaries[-1]), boundaries[-1], after)


def _ends(
    walker: _Walker, shareable: Sequence[int], wanted: Sequence[Span], segment_tokens: int
) -> Iterator[tuple[int, Tensor, _Boundary]]:
    """Run all sequences without gradient; yield each one's index, its wanted states and the boundary at its end.

    Its keys and values are on the path until the next one is asked for.
    """
    boundaries = [_Boundary(0)]
    for event in walk(walker.rows, shareable, segment_tokens):
        if isinstance(event, Enter):
            boundaries.append(walker.extend(event.sequence, event.span, boundaries[-1])[1])
        elif isinstance(event, Tail):
            states, end = [], boundaries[-1]
            for span in event.spans:
                hidden, end = walker.extend(event.sequence, span, end, wanted[event.sequence])
                states.append(hidden)
            yield event.sequence, torch.cat(states), end
        else:
            boundaries.pop()


@torch.no_grad()
def depth_first_states(backend: Backend, prompts: Sequences, answers: Sequences, segment_tokens: int) -> Tensor:
    """Return the hidden states that predict each answer's tokens, joined in the order given: (sum |y|, H).

    The same as `executors.response_states`, without gradient; with whatever weights are on.

    Raises:
        UsageError, DataError: as `depth_first_passes`.
    """
    used = [i for i, answer in enumerate(answers) if answer]
    if not used:
        return backend.head.weight.new_empty((0, backend.head.width))
    prompts, answers = [prompts[i] for i in used], [answers[i] for i in used]
    rows = _rows(prompts, answers)
    backend.check_width(max(map(len, rows)))
    wanted = [_wanted(x, y) for x, y in zip(prompts, answers, strict=True)]
    with _on_a_path(backend):
        walker = _Walker(backend, rows, gradients=False)
        ends = _ends(walker, [len(x) - 1 for x in prompts], wanted, segment_tokens)
        found = {index: states for index, states, _ in ends}
    return torch.cat([found[i] for i in range(len(rows))])


@torch.no_grad()
def forked_cache(backend: Backend, prompts: Sequences, segment_tokens: int, room: int = 0) -> Cache:
    """Return the cache of all but the last token of each prompt, left-padded to one width W; for `generate`.

    Common prefixes are computed once. Keys, values: (B, heads, W, d), in buffers with room for `room` tokens more;
    recurrent states have no width, and padding never enters them. Prompts have at least two tokens.

    Raises:
        UsageError, DataError: as `depth_first_passes`.
    """
    rows = [list(prompt[:-1]) for prompt in prompts]
    width = max(map(len, rows))
    backend.check_width(width)
    with _on_a_path(backend):
        walker = _Walker(backend, rows, gradients=False)
        attention: list[tuple[Tensor, Tensor]] = []
        recurrent: list[list[Tensor]] = [[] for _ in rows]
        # A tail has two tokens, or nothing came before it: a recurrent layer takes a single token in another way.
        shareable = [max(0, len(row) - 2) for row in rows]
        for index, _, end in _ends(walker, shareable, [(0, 0)] * len(rows), segment_tokens):
            pairs = walker.path.keys_and_values(end.length)
            if not attention:
                shapes = [(len(rows), k.shape[0], width + room, k.shape[2]) for k, _ in pairs]
                attention = [(k.new_zeros(s), v.new_zeros(s)) for (k, v), s in zip(pairs, shapes, strict=True)]
            for (keys, values), (k, v) in zip(attention, pairs, strict=True):
                keys[index, :, width - end.length : width] = k
                values[index, :, width - end.length : width] = v
            recurrent[index] = end.states
    return batch_cache(walker.config, attention, [torch.cat(x) for x in zip(*recurrent, strict=True)], room)
