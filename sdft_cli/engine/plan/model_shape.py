"""Sizes of a model and its adapter, counted on the real classes on torch's meta device: no weight is loaded."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sdft_cli.config import TrainConfig
from sdft_cli.engine.models.adapters import lora_layers
from sdft_cli.engine.models.backend import Sharing
from sdft_cli.engine.models.backend_transformers import attach_lora, empty_model
from sdft_cli.engine.models.head import head_of
from sdft_cli.engine.models.load import config_of
from sdft_cli.engine.models.modes import switch_off_dropout
from sdft_cli.engine.models.quiet import quiet_libraries
from sdft_cli.engine.models.targets import trunk_linears
from sdft_cli.engine.passes.depth_first import path_obstacle
from sdft_cli.engine.passes.packed import packing_obstacle
from sdft_cli.errors import UsageError

BYTES = {"float32": 4, "bfloat16": 2}
FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
_LAYER = re.compile(r"(?:.*\.)?layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Block:
    """`count` layers of one kind. `linears`: leaf name -> (in, out) of a matrix; `adapted`: those with an adapter."""

    kind: str
    count: int
    linears: Mapping[str, tuple[int, int]]
    adapted: frozenset[str]
    norms_heads: bool
    """Queries and keys have a norm of their own (Qwen3)."""

    @property
    def gated(self) -> bool:
        """Full attention whose query matrix also makes an output gate (Qwen3.5): out of q is twice the in of o."""
        return "q_proj" in self.linears and self.linears["q_proj"][1] == 2 * self.linears["o_proj"][0]


@dataclass(frozen=True)
class DeltaNet:
    """A gated DeltaNet mixer (Qwen3.5's linear attention), in numbers of heads and features."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int

    @property
    def features(self) -> int:
        """Width of queries, keys and values together: what its convolution runs over."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim


@dataclass(frozen=True)
class Shape:
    """What the plan needs to know of a model. Counts are of numbers, not of bytes."""

    hidden: int
    vocabulary: int
    softcap: bool
    """The logits have a cap, whose slope the loss keeps."""
    heads: int
    kv_heads: int
    head_dim: int
    blocks: tuple[Block, ...]
    delta_net: DeltaNet | None
    parameters: int
    """All of the checkpoint, a vision tower and the embeddings included; tied weights once."""
    matrix_parameters: int
    """Of the matrices that every token goes through: the language trunk without embeddings, head and norms."""
    adapter_parameters: int
    adapted_parameters: int
    """Of the weights that the adapter sits on: what a merged sampling copy doubles."""
    rank: int
    packing_obstacle: str | None
    path_obstacle: str | None

    def layers(self, *kinds: str) -> int:
        """Return how many layers are of these kinds."""
        return sum(block.count for block in self.blocks if block.kind in kinds)

    @property
    def intermediate(self) -> int:
        """Width of the widest MLP."""
        return max((block.linears.get("down_proj", (0, 0))[0] for block in self.blocks), default=0)

    def kv_bytes(self, size: int) -> int:
        """Bytes of keys and values of one token, `size` bytes each; sliding windows count as full: an upper bound."""
        return 2 * self.kv_heads * self.head_dim * self.layers(FULL, SLIDING) * size

    def state_bytes(self, size: int) -> int:
        """Bytes of the recurrent and convolution states of one sequence: fp32 states, convolutions in `size` bytes."""
        net = self.delta_net
        if net is None:
            return 0
        recurrent = net.value_heads * net.key_dim * net.value_dim * 4
        return (recurrent + net.features * net.kernel * size) * self.layers(LINEAR)


def read_shape(config: TrainConfig, model: str) -> Shape:
    """Return the shape of a model (a folder or Hub id) with the profile's adapter; only the model's config is read.

    Raises:
        MachineError: the config cannot be had.
        UsageError: the config is none that transformers knows, or the plan does not model this kind of model, or a
            target of the adapter hits nothing.
    """
    quiet_libraries()
    return shape_of(config_of(model, config.revision), config)


def shape_of(model_config: Any, config: TrainConfig) -> Shape:
    """Return the shape of a model from its transformers config; raises as `read_shape`."""
    text = model_config.get_text_config()
    kinds = tuple(getattr(text, "layer_types", None) or (FULL,) * text.num_hidden_layers)
    model = empty_model(model_config)
    _refuse_unknown(text, kinds, any("experts" in name.split(".") for name, _ in model.named_modules()))
    switch_off_dropout(model)  # as loading does
    obstacle = packing_obstacle(model)
    parameters = sum(p.numel() for p in model.parameters())
    modules = trunk_linears(model)
    norms = {n for n, _ in model.named_modules() if n.endswith("q_norm")}
    head, capped = model.get_output_embeddings(), head_of(model).softcap is not None
    with torch.device("meta"):
        peft_model = attach_lora(model, config)
    adapted = {name.removeprefix("base_model.model."): x for name, x in lora_layers(peft_model).items()}
    blocks = _blocks(kinds, modules, adapted, norms)
    _refuse_unknown_blocks(text, blocks)
    sizes = [layer.get_base_layer().weight.numel() for layer in adapted.values()]
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Shape(
        hidden=text.hidden_size,
        vocabulary=head.weight.shape[0],
        softcap=capped,
        heads=text.num_attention_heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        head_dim=head_dim,
        blocks=blocks,
        delta_net=_delta_net(text) if LINEAR in kinds else None,
        parameters=parameters,
        matrix_parameters=sum(m.weight.numel() for m in modules.values()),
        adapter_parameters=sum(p.numel() for p in peft_model.parameters() if p.requires_grad),
        adapted_parameters=sum(sizes),
        rank=config.lora.rank,
        packing_obstacle=obstacle,
        path_obstacle=path_obstacle(peft_model, model.config.get_text_config()),
    )


def possible_sharing(shape: Shape, config: TrainConfig, own_attention: str | None = None) -> list[Sharing]:
    """Return the kinds of prefix sharing that this run may use, in the order in which `passes/choose.py` tries them.

    Args:
        shape: of the model.
        config: of the run.
        own_attention: `Backend.attends_itself` of the backend that will run it.
    """
    if own_attention or config.prefix_sharing == "none":
        return ["none"]
    obstacles: dict[Sharing, str | None] = {"packed": shape.packing_obstacle, "depth_first": shape.path_obstacle}
    kinds = [kind for kind, why in obstacles.items() if why is None and config.prefix_sharing in ("auto", kind)]
    return kinds or ["none"]


def _refuse_unknown(text: Any, kinds: tuple[str, ...], experts: bool) -> None:
    unknown = sorted(set(kinds) - {FULL, SLIDING, LINEAR})
    if LINEAR in kinds and not hasattr(text, "linear_num_value_heads"):
        unknown.append(f"{LINEAR} (other than gated DeltaNet)")
    if unknown or experts:
        what = "a mixture of experts" if experts else f"a model with {', '.join(unknown)} layers"
        raise _not_modelled(text, what)


def _refuse_unknown_blocks(text: Any, blocks: tuple[Block, ...]) -> None:
    """Refuse layers with other matrices than those that the memory model and the operations know by name."""
    for block in blocks:
        known = {"down_proj"} if block.kind == LINEAR else {"down_proj", "o_proj"}
        queries = block.kind == LINEAR or {"q_proj", "qkv_proj"} & block.linears.keys()
        if not queries or known - block.linears.keys():
            raise _not_modelled(text, f"a model with layers of {', '.join(block.linears) or 'other kinds'}")


def _not_modelled(text: Any, what: str) -> UsageError:
    return UsageError(f"{text.model_type} is {what}, which `sdft plan` does not model: rehearse it on the card.")


def _delta_net(text: Any) -> DeltaNet:
    return DeltaNet(
        text.linear_num_key_heads,
        text.linear_num_value_heads,
        text.linear_key_head_dim,
        text.linear_value_head_dim,
        text.linear_conv_kernel_dim,
    )


def _blocks(
    kinds: tuple[str, ...], modules: Mapping[str, nn.Linear], adapted: Mapping[str, Any], norms: set[str]
) -> tuple[Block, ...]:
    """Group the layers by kind; the layers of one kind are alike, so the first one speaks for all."""
    blocks = []
    for kind, count in Counter(kinds).items():
        first = str(kinds.index(kind))
        inside = {n: m for n, m in modules.items() if (hit := _LAYER.fullmatch(n)) and hit[1] == first}
        blocks.append(
            Block(
                kind=kind,
                count=count,
                linears={n.rsplit(".", 1)[-1]: (m.in_features, m.out_features) for n, m in inside.items()},
                adapted=frozenset(n.rsplit(".", 1)[-1] for n in inside if n in adapted),
                norms_heads=any((hit := _LAYER.fullmatch(n)) and hit[1] == first for n in norms),
            )
        )
    return tuple(blocks)
