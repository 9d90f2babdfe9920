"""Three ways to run the turns of a step behind one interface; all compute the same states and the same gradient.

- `none`: padded passes, every turn pays for its whole prompt. Any model.
- `packed`: a pass holds each distinct prefix once (`packed.py`). Full attention only; the fastest,
  and memory grows with the tokens of a pass.
- `depth_first`: turns one after the other behind one live path, what they share run again in segments
  (`depth_first.py`). Full attention and gated delta rules; memory is that of one segment and of one path's keys.

`backend.sharing` says which; `choose.py` chooses and checks it.
"""

from __future__ import annotations

from collections.abc import Generator
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.passes.decode_cache import roomy_cache
from sdft_cli.engine.passes.depth_first import depth_first_passes, depth_first_states, forked_cache
from sdft_cli.engine.passes.packed import packed_cache, packed_states, shared_passes
from sdft_cli.engine.passes.padded import Sequences, padded_passes, padded_states
from sdft_cli.engine.passes.timing import Phases

PREFILL_TOKENS = 8192
"""Prompts with common prefixes are prefilled together up to so many distinct tokens (packed)."""


def plan_passes(backend: Backend, rows: Sequences, max_tokens: int, max_items: int | None = None) -> list[list[int]]:
    """Cut sequences into groups of at most `max_tokens` tokens (distinct ones where prefixes are shared)."""
    if backend.sharing == "none":
        return padded_passes([len(row) for row in rows], max_tokens, max_items)
    return shared_passes(rows, max_tokens, max_items)


@torch.no_grad()
def answer_states(backend: Backend, prompts: Sequences, answers: Sequences, pad_id: int) -> Tensor:
    """Return the hidden states that predict the tokens of each answer, joined: (sum |y|, H); without gradient."""
    if backend.sharing == "depth_first":
        return depth_first_states(backend, prompts, answers, backend.segment_tokens)
    return response_states(backend, prompts, answers, pad_id)


def student_passes(
    backend: Backend,
    prompts: Sequences,
    answers: Sequences,
    pad_id: int,
    max_tokens: int,
    phases: Phases | None = None,
) -> Generator[tuple[list[int], Tensor], None, None]:
    """Yield some turns, and the hidden states (sum |y|, H) that predict their answers, until each turn came once.

    Go back from the loss of these states before the next ones are asked for: that adds the gradient of a backward pass
    of each turn alone. States that nothing goes back from, as where no token has loss, add none.

    Args:
        backend: with the student's weights on.
        prompts, answers: token ids x_i and y_i; turns without answer are left out.
        max_tokens: most tokens of a pass; depth-first has passes of `backend.segment_tokens` instead.
        phases: where `student` (forward passes) is counted, and the depth-first walk's own `backward`.
    """
    phases = phases or Phases()
    if backend.sharing == "depth_first":
        yield from depth_first_passes(backend, prompts, answers, backend.segment_tokens, phases=phases)
        return
    for turns in _passes(backend, prompts, answers, max_tokens):
        with phases("student"):
            states = response_states(backend, [prompts[i] for i in turns], [answers[i] for i in turns], pad_id)
        yield turns, states


def teacher_passes(
    backend: Backend, prompts: Sequences, answers: Sequences, pad_id: int, max_tokens: int
) -> list[Tensor]:
    """Return the states of each answer of a step, (|y_i|, H), without gradient, in as many passes as it takes."""
    if backend.sharing == "depth_first":
        states = answer_states(backend, prompts, answers, pad_id)
        return list(states.split([len(answer) for answer in answers]))
    states_of = [backend.head.weight.new_empty((0, backend.head.width)) for _ in answers]
    for turns in _passes(backend, prompts, answers, max_tokens):
        chosen = [answers[i] for i in turns]
        states = answer_states(backend, [prompts[i] for i in turns], chosen, pad_id)
        for i, part in zip(turns, states.split([len(answer) for answer in chosen]), strict=True):
            states_of[i] = part
    return states_of


def _passes(backend: Backend, prompts: Sequences, answers: Sequences, max_tokens: int) -> list[list[int]]:
    used = [i for i, answer in enumerate(answers) if answer]
    groups = plan_passes(backend, [[*prompts[i], *answers[i]] for i in used], max_tokens)
    return [[used[place] for place in group] for group in groups]


def keeps_a_cache(backend: Backend) -> bool:
    """Say whether a model keeps what it remembers in a cache that it is given; Mamba and MiniMax have their own."""
    base = backend.base
    takes = backend.own_attention is None and "past_key_values" in signature(base.forward).parameters
    return takes and bool(base._supports_default_dynamic_cache())


def decoding_cache(backend: Backend, prompts: Sequences, new_tokens: int) -> Any:
    """Return a cache for `generate`, with room for `new_tokens`: of all but the last token of each prompt, or empty.

    None where the library keeps a cache of its own, or the model does.
    """
    if not keeps_a_cache(backend):
        return None
    if backend.sharing == "none" or min(map(len, prompts)) < 2:
        return roomy_cache(backend.base.config.get_text_config(), max(map(len, prompts)) + new_tokens)
    if backend.sharing == "packed":
        return packed_cache(backend, prompts, PREFILL_TOKENS, new_tokens + 1)
    return forked_cache(backend, prompts, backend.segment_tokens, new_tokens + 1)


def response_states(backend: Backend, prompts: Sequences, responses: Sequences, pad_id: int) -> Tensor:
    """Return the hidden states that predict the tokens of each response, joined over the batch: (sum |y|, H).

    The state at position |x| - 1 + t predicts y_t, so only positions of the response are kept.
    """
    rows = [[*x, *y] for x, y in zip(prompts, responses, strict=True)]
    states = packed_states(backend, rows) if backend.sharing == "packed" else padded_states(backend, rows, pad_id)
    return torch.cat([s[len(x) - 1 : len(x) - 1 + len(y)] for s, x, y in zip(states, prompts, responses, strict=True)])
