"""Forward passes over many prompts at once: padded, or packed with their common prefixes stored once.

Both give the same hidden states and the same gradient up to rounding; `sharing.py` compares them on the loaded model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdft_cli.engine.prefix_tree import build_tree, shared_passes

if TYPE_CHECKING:
    from sdft_cli.engine.backend import Backend

Sequences = Sequence[Sequence[int]]


def response_states(backend: Backend, prompts: Sequences, responses: Sequences, pad_id: int) -> Tensor:
    """Return the hidden states that predict the tokens of each response, joined over the batch: (sum |y|, H).

    The state at position |x| - 1 + t predicts y_t, so only positions of the response are kept.
    """
    rows = [[*x, *y] for x, y in zip(prompts, responses, strict=True)]
    states = packed_states(backend, rows) if backend.sharing == "packed" else padded_states(backend, rows, pad_id)
    return torch.cat([s[len(x) - 1 : len(x) - 1 + len(y)] for s, x, y in zip(states, prompts, responses, strict=True)])


def padded_states(backend: Backend, rows: Sequences, pad_id: int) -> list[Tensor]:
    """Return the last hidden states (T_i, H) of each sequence; one row of the batch each, padding on the right."""
    width = max(map(len, rows))
    backend.check_width(width)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    states = backend.trunk(
        input_ids=ids.to(backend.device), attention_mask=mask.to(backend.device), use_cache=False
    ).last_hidden_state
    return [state[: len(row)] for state, row in zip(states, rows, strict=True)]


def packed_states(backend: Backend, rows: Sequences) -> list[Tensor]:
    """Return the same states from one row that holds each distinct prefix once.

    Every token has its own position and sees its own ancestors only (a 4-D mask), so its state, and the gradient
    through it, are those of its sequence alone. Exact for attention over the full context; not for recurrent layers.
    """
    states, where = _packed(backend, rows, use_cache=False)
    return [states.last_hidden_state[0][index] for index in where]


def _packed(backend: Backend, rows: Sequences, use_cache: bool) -> tuple[Any, list[Tensor]]:
    tree = build_tree(rows)
    # A tree with one branch is a plain sequence: without a mask the attention kernel skips the upper triangle.
    mask = torch.from_numpy(tree.mask())[None, None].to(backend.device) if len(tree.branches) > 1 else None
    output = backend.trunk(
        input_ids=torch.from_numpy(tree.ids)[None].to(backend.device),
        attention_mask=mask,
        position_ids=torch.from_numpy(tree.depths)[None].to(backend.device),
        use_cache=use_cache,
    )
    return output, [torch.from_numpy(row).to(backend.device) for row in tree.rows]


def packed_cache(backend: Backend, prompts: Sequences, max_tokens: int, room: int = 0) -> Any:
    """Return the key-value cache of all but the last token of each prompt, left-padded to one width W.

    Common prefixes are computed once, in packed passes of at most `max_tokens` tokens. Keys, values: (B, heads, W, d),
    in buffers with room for `room` tokens more.
    """
    from sdft_cli.engine.states import batch_cache

    rows = [list(prompt[:-1]) for prompt in prompts]
    width = max(map(len, rows))
    attention: list[tuple[Tensor, Tensor]] = []
    for group in shared_passes(rows, max_tokens, attention=attention_share(backend)):
        output, where = _packed(backend, [rows[i] for i in group], use_cache=True)
        layers = [(layer.keys[0], layer.values[0]) for layer in output.past_key_values.layers]
        if not attention:
            shape = (len(rows), layers[0][0].shape[0], width + room)
            attention = [(k.new_zeros(*shape, k.shape[-1]), v.new_zeros(*shape, v.shape[-1])) for k, v in layers]
        for i, index in zip(group, where, strict=True):
            for (keys, values), (k, v) in zip(attention, layers, strict=True):
                keys[i, :, width - len(index) : width] = k[:, index]
                values[i, :, width - len(index) : width] = v[:, index]
    return batch_cache(backend.base.config.get_text_config(), attention, [], room)


def padded_passes(lengths: Sequence[int], max_tokens: int, max_items: int | None = None) -> list[list[int]]:
    """Cut items into forward passes of at most `max_tokens` padded tokens each, items of like length together.

    Returns lists of indices, each index once. A pass of n items costs n * longest; an item that is longer than the cap
    is a pass of its own.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        count = len(groups[-1]) + 1 if groups else 1
        if groups and count * lengths[index] <= max_tokens and (max_items is None or count <= max_items):
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def attention_share(backend: Backend) -> float:
    """Return what attending to one token costs, in units of the rest of a token's forward pass through a layer.

    Queries with keys and weights with values are 4 operations per head dimension, of which a pass over n tokens spares
    half, as causal kernels do or as blocks do (`tree_attention.py`); the rest is 2 per parameter.
    """
    config = backend.base.config.get_text_config()
    heads = config.num_attention_heads
    size = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    embeddings = backend.base.get_input_embeddings().weight.numel()
    parameters = sum(p.numel() for p in backend.trunk.parameters()) - embeddings
    return float(2 * size * config.num_hidden_layers / (2 * parameters))


def packing_obstacle(model: Any) -> str | None:
    """Say why a model cannot run packed, or None if it can."""
    config = model.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ())
    if layers - {"full_attention"}:
        return f"the model has {', '.join(sorted(layers - {'full_attention'}))} layers"
    if config._attn_implementation not in ("sdpa", "sdft_tree"):  # ours, in blocks (tree_attention.py)
        return f"attention of type {config._attn_implementation} takes no boolean mask"
    return context_obstacle(config)


def context_obstacle(config: Any) -> str | None:
    """Say why a state is not a function of the tokens so far and their positions, by the model's (text) config."""
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "the model attends in a sliding window"
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in ("dynamic", "longrope"):
        return f"positions of type {rope} depend on the length of the batch"
    return None
