"""Models deep enough to round, and errors planted into ways to share: what the check has to accept and to refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface

from sdft_cli.config import load_train_config
from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.models.backend_transformers import TransformersBackend, attach_lora
from sdft_cli.engine.passes import attention, decode_cache, depth_first, executors, live_cache, packed

WORDS = 512
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 1}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def deep(kind: str, layers: int, hidden: int, dtype: torch.dtype, seed: int = 0, size: int = 16) -> Backend:
    """A random model with an adapter: `hybrid` (Qwen3.5 without its tower) or `attention` (Qwen3); `size` of a head."""
    import transformers as t

    sizes = {
        "vocab_size": WORDS,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "head_dim": size,
        **HEADS,
        **SPECIAL,
    }
    torch.manual_seed(seed)
    if kind == "hybrid":
        linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_conv_kernel_dim": 4}
        sizes |= {**linear, "linear_key_head_dim": size, "linear_value_head_dim": size, "full_attention_interval": 4}
        model: Any = t.Qwen3_5ForCausalLM(t.Qwen3_5TextConfig(**sizes))
    else:
        model = t.Qwen3ForCausalLM(t.Qwen3Config(**sizes))
    profile = "qwen3.5-9b-64k" if kind == "hybrid" else "cpu-demo"
    config = load_train_config(profile, ["lora.rank=4", "lora.alpha=8"])
    adapted = attach_lora(model.to(dtype).eval().requires_grad_(False), config)
    return TransformersBackend(adapted.eval(), torch.device("cpu"))


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute is another one for the while."""
    own = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, own)


def _causal(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None) -> tuple[Tensor, None]:
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    found = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    return found.transpose(1, 2).contiguous(), None


def path_mask(change: Callable[[Tensor, int], Tensor]) -> Callable[[Backend], AbstractContextManager[None]]:
    """Attention along a path with another mask: `change` takes the right one (n, keys) and the length of the path."""

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **settings: Any) -> Any:
        queries, path = query.shape[2], key.shape[2] - query.shape[2]
        right = torch.ones(queries, key.shape[2], dtype=torch.bool).tril(path)
        return _causal(query, key, value, change(right, path) if path else right, settings.get("scaling"))

    @contextmanager
    def planted(backend: Backend) -> Iterator[None]:
        AttentionInterface.register(attention.ATTENTION, attend)
        try:
            yield
        finally:
            AttentionInterface.register(attention.ATTENTION, attention.attend_along_path)

    return planted


def _without(mask: Tensor, key: int) -> Tensor:
    mask[:, key] = False
    return mask


def exact(backend: Backend) -> AbstractContextManager[None]:
    """No error."""
    return replaced(backend, "segment_tokens", backend.segment_tokens)


@contextmanager
def not_rewound(backend: Backend) -> Iterator[None]:
    """Recurrent states go on from the turn before instead of from the common prefix."""
    own = live_cache.Path.rewind

    def rewind(path: Any, length: int, states: Any) -> None:
        left = [x.detach() for x in path.states()]
        own(path, length, left if states and left else states)

    with replaced(live_cache.Path, "rewind", rewind):
        yield


@contextmanager
def shifted(backend: Backend) -> Iterator[None]:
    """What stands behind a common prefix has positions that are one too large."""
    own = backend.trunk_pass

    def trunk_pass(**inputs: Any) -> Any:
        positions = inputs.get("position_ids")
        if positions is not None and positions.shape[1] > 1 and backend.sharing != "none":
            behind = torch.zeros_like(positions, dtype=torch.bool)
            if backend.sharing == "packed":  # a new branch starts where positions go back
                behind[:, 1:] = (positions.diff(dim=-1) != 1).cumsum(-1) > 0
            else:
                behind |= positions[0, 0] > 0
            inputs["position_ids"] = positions + behind.long()
        return own(**inputs)

    with replaced(backend, "trunk_pass", trunk_pass):
        yield


@contextmanager
def no_key_gradient(backend: Backend) -> Iterator[None]:
    """Common prefixes get no gradient through their keys and values."""

    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient[:, :, ctx.start :], None, None

    with replaced(live_cache._Append, "backward", staticmethod(backward)):
        yield


@contextmanager
def no_state_gradient(backend: Backend) -> Iterator[None]:
    """Common prefixes get no gradient through their recurrent states."""

    def add(boundary: Any, inputs: Any) -> None:
        boundary.reached = True

    with replaced(depth_first._Boundary, "add", add):
        yield


@contextmanager
def lost_turn(backend: Backend) -> Iterator[None]:
    """Of turns that are packed together, the first one's answer gets no gradient."""
    own = executors.response_states

    def response_states(backend: Any, prompts: Any, responses: Any, pad_id: int) -> Tensor:
        states = own(backend, prompts, responses, pad_id)
        first = len(responses[0]) if len(responses) > 1 else 0
        return torch.cat([states[:first].detach(), states[first:]])

    with replaced(executors, "response_states", response_states):
        yield


def wrong_row(owner: Any) -> Callable[[Backend], AbstractContextManager[None]]:
    """Each prompt is decoded behind the cache of another one; `owner`: the module that builds the cache."""
    own = decode_cache.batch_cache

    def batch_cache(config: Any, pairs: Any, recurrent: Any, room: int = 0) -> Any:
        rolled = [(keys.roll(1, 0), values.roll(1, 0)) for keys, values in pairs]
        return own(config, rolled, [state.roll(1, 0) for state in recurrent], room)

    return lambda backend: replaced(owner, "batch_cache", batch_cache)


def _branches(change: Callable[[Tensor], Tensor]) -> Callable[[Backend], AbstractContextManager[None]]:
    """`change`: of the places (path,) that a branch sees beside its own, into those that it sees then."""
    own = packed.branches_of

    def branches_of(tree: Any, device: Any) -> Any:
        found = own(tree, device)
        for i, (seen, length) in enumerate(zip(found.seen, found.lengths, strict=True)):
            path, mine = seen.split([len(seen) - length, length])
            found.seen[i] = torch.cat([change(path) if len(path) else path, mine])
        return found

    return lambda backend: replaced(packed, "branches_of", branches_of)


Faults = dict[str, Callable[[Backend], AbstractContextManager[None]]]

DEPTH_FIRST: Faults = {
    "mask: a token of the future": path_mask(lambda mask, path: torch.ones_like(mask).tril(path + 1)),
    "mask: not itself": path_mask(lambda mask, path: mask.tril(path - 1)),
    "mask: not the last of the path": path_mask(lambda mask, path: _without(mask, path - 1)),
    "mask: not the first of the path": path_mask(lambda mask, path: _without(mask, 0)),
    "state not rewound": not_rewound,
    "position shifted": shifted,
    "gradient without keys": no_key_gradient,
    "gradient without states": no_state_gradient,
    "wrong cache row": wrong_row(depth_first),
}
"""Errors of the depth-first executor, by name."""

PACKED: Faults = {
    "path: not its last token": _branches(lambda path: path[:-1]),
    "path: a token of a sibling": _branches(lambda path: torch.cat([path, path[-1:] + 1])),
    "position shifted": shifted,
    "gradient without a turn": lost_turn,
    "wrong cache row": wrong_row(decode_cache),
}
"""Errors of the packed executor, by name."""
