"""Which executor a run takes, and the check that it is exact on the loaded model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from sdft_cli.engine.models.backend import Backend, Sharing
from sdft_cli.engine.passes.attention import use_tree_attention
from sdft_cli.engine.passes.depth_first import depth_first_obstacle
from sdft_cli.engine.passes.executors import answer_states, student_passes
from sdft_cli.engine.passes.packed import packing_obstacle
from sdft_cli.engine.passes.padded import padded_states
from sdft_cli.engine.passes.start_check import check_decoding, decoding_gaps
from sdft_cli.engine.passes.tree_attention import choose_tree_attention
from sdft_cli.errors import WARNING, UsageError

CHECK_TOLERANCE = {torch.float32: (1e-4, 1e-4), torch.bfloat16: (3e-2, 1e-1), torch.float16: (3e-2, 1e-1)}
"""Largest relative difference of hidden states, and of the gradient, that counts as rounding, by dtype."""

DECODE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.3, torch.float16: 0.3}
"""Nats by which log-probabilities of decoded tokens may differ from those of a pass over them, by dtype."""


def choose_sharing(backend: Backend, requested: str, room: str | None = None) -> str:
    """Set `backend.sharing` by the configured `prefix_sharing`, and return a sentence that says what it is.

    Then decoding is compared with scoring (`start_check.py`).

    Args:
        backend: loaded.
        requested: `auto`, `packed`, `depth_first` or `none`.
        room: why packed passes do not fit into memory (`packed_room`); None: they fit.

    Raises:
        UsageError: a kind was asked for by name and is not exact on this model.
        MachineError: the model decodes another distribution than it scores.
    """
    packs = requested in ("auto", "packed") and sharing_obstacle(backend, "packed") is None
    attention = choose_tree_attention(backend) if packs else None
    told = [_choose(backend, requested, room), attention if backend.sharing == "packed" else None]
    return "\n".join(text for text in (*told, check_decoding(backend)) if text)


def _choose(backend: Backend, requested: str, room: str | None) -> str:
    if requested == "none":
        backend.sharing = "none"
        return "Prefix sharing: none (as asked)"
    order: tuple[Sharing, ...] = ("depth_first", "packed") if room else ("packed", "depth_first")
    errors: list[str] = []
    for kind in order:
        if requested not in ("auto", kind):
            continue
        error = sharing_error(backend, kind)
        if error is None:
            backend.sharing = kind
            if kind == "packed":
                use_tree_attention(backend.base.config.get_text_config())
            why = "; ".join([*errors, *([room] if room and kind == "depth_first" else [])])
            return f"Prefix sharing: {kind} (checked on this model{f'; {why}' if why else ''})"
        errors.append(f"not {kind}, since {error}")
    backend.sharing = "none"
    if requested != "auto":
        raise UsageError(f"prefix_sharing is {requested}, but {errors[0].partition(', since ')[2]}: use auto or none.")
    return f"{WARNING}no prefix sharing, every turn pays for its whole prompt ({'; '.join(errors)})"


def sharing_error(backend: Backend, kind: Sharing) -> str | None:
    """Compare a small step with independent turns on the loaded model: hidden states and the adapter's gradient.

    Ids are made up; turns are uneven, one extends another, one shares nothing, two have the same prompt. In between a
    few tokens are decoded, as in a step: what decoding leaves behind is seen, and their log-probabilities are compared
    with those of a pass over each answer. B is made non-zero for the while, since A has no gradient at B = 0. Weights,
    gradients and generators are left as they were.

    Returns None if they agree within `CHECK_TOLERANCE`, else why this model is not to be run this way.
    """
    obstacle = sharing_obstacle(backend, kind)
    if obstacle:
        return obstacle
    try:
        pairs, gap = _both_ways(backend, kind)
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines() or ["no reason given"]
        return f"{kind} passes end in an error on it ({type(error).__name__}: {reason[0]})"
    for (name, found, expected), tolerance in zip(pairs, CHECK_TOLERANCE[backend.head.weight.dtype], strict=False):
        difference = float((found - expected).float().norm() / expected.float().norm())
        if not difference <= tolerance:
            return f"{kind} {name} differ from those of independent turns by {difference:.1e}"
    if not gap <= DECODE_TOLERANCE[backend.head.weight.dtype]:
        return f"tokens decoded behind {kind} prompts have other log-probabilities than a pass gives, by {gap:.1e} nats"
    return None


def _both_ways(backend: Backend, kind: Sharing) -> tuple[list[tuple[str, Tensor, Tensor]], float]:
    """Run a small step both ways.

    Returns name, ours, and that of independent turns: of the states, and with an adapter of its gradient. And the
    largest of `decoding_gaps`, in nats.
    """
    ids = [(7919 * i + 101) % backend.head.words for i in range(96)]
    prompts = [ids[:70], ids[:40], ids[:40], [*ids[:60], *ids[80:85]], ids[90:93]]
    answers = [ids[70:76], ids[40:55], ids[3:4], ids[1:9], ids[7:11]]
    with _set_for_check(backend, kind), _adapter_moved(backend), backend.decoding():
        with torch.no_grad():
            alone = torch.cat([_alone(backend, x, y) for x, y in zip(prompts, answers, strict=True)])
        gap = float(decoding_gaps(backend, prompts[1:]).max())
        states = answer_states(backend, prompts, answers, 0)
        pairs = [("states", states, alone)]
        if backend.parameters():
            weight = torch.linspace(-1, 1, states.shape[1], device=states.device)

            def independent() -> None:
                for x, y in zip(prompts, answers, strict=True):
                    (_alone(backend, x, y).float() * weight).sum().backward()

            def together() -> None:
                for _, part in student_passes(backend, prompts, answers, 0, 10_000):
                    (part.float() * weight).sum().backward()

            plain, ours = _gradient(backend, independent), _gradient(backend, together)
            pairs.append(("gradients", ours, plain))
    return pairs, gap


def sharing_obstacle(backend: Backend, kind: Sharing) -> str | None:
    """Say why a model cannot be run in a way, or None if it can."""
    if kind == "depth_first":
        return depth_first_obstacle(backend)
    return packing_obstacle(backend.base) if backend.takes_masks else f"{backend.name} takes no mask of ours"


def _alone(backend: Backend, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    return padded_states(backend, [[*prompt, *answer]], 0)[0][len(prompt) - 1 : -1]


def _gradient(backend: Backend, run: Callable[[], object]) -> Tensor:
    """Return the adapter's gradient, joined, that a function leaves; parameters that it does not reach have none."""
    for parameter in backend.parameters():
        parameter.grad = None
    run()
    return torch.cat([p.grad.flatten() for p in backend.parameters() if p.grad is not None])


@contextmanager
def _set_for_check(backend: Backend, kind: Sharing) -> Iterator[None]:
    own = backend.sharing, backend.segment_tokens
    backend.sharing, backend.segment_tokens = kind, 12
    try:
        yield
    finally:
        backend.sharing, backend.segment_tokens = own


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
