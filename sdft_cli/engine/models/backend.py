"""The small interface between the algorithm and the library that runs the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from sdft_cli.config import TrainConfig
from sdft_cli.engine.kernels.halves import Halves
from sdft_cli.engine.kernels.products import Products
from sdft_cli.engine.models.head import Head, head_of
from sdft_cli.engine.models.modes import evaluating, forget_positions
from sdft_cli.errors import UsageError

Sharing = Literal["none", "packed", "depth_first"]
Decoder = Literal["generate", "fixed", "growing"]
"""transformers' `generate`; steps over fixed buffers, as CUDA graphs on a GPU; steps over a growing cache."""


class Backend(ABC):
    """A causal language model with one LoRA adapter on its language trunk.

    `model` is the peft model; `device` is where its inputs go. The base weights are frozen and never written.
    `sharing` says how common prefixes are computed (`engine/passes/executors.py`), `segment_tokens` how many tokens a
    depth-first pass has; `own_attention`, why nothing of ours goes into the library's attention (None: it does);
    `takes_cache`, whether its `generate` takes a cache of ours; `mergeable`, whether the adapter can be added to the
    base weights (not to 4-bit ones); `sharded`, whether this process holds a part of each layer of the base, which is
    whole only while it runs (FSDP2); `left_pads`, whether prompts of several lengths may be decoded together;
    `plain_head`, whether the model leaves out the scale and the cap that its config names (`head_check.py`); `decoder`,
    what decodes (`engine/passes/decode_steps.py`); `packed_steps`, whether steps over a growing cache have packed
    weights; `halves`, the base's weights in float16, if it holds them and such steps read those; `products`, of what
    kind those of training steps are (`engine/kernels/products.py`); `block_masks`, whether packed passes attend by
    FlexAttention (`engine/passes/tree_attention.py`); `vllm` is an engine that samples rollouts, with a function that
    hands it the adapter, if the library brings one; `kernels`, a sentence about the kernels that run it, if it has
    layers that need some (`engine/kernels/check.py`). `package` has to be installed for it; `features` are settings
    that it can honour and others cannot.
    """

    name: str
    package: str | None = None
    features: frozenset[str] = frozenset()
    model: Any
    device: torch.device
    sharing: Sharing = "none"
    segment_tokens: int = 2048
    own_attention: str | None = None
    takes_cache: bool = True
    mergeable: bool = True
    sharded: bool = False
    left_pads: bool = True
    plain_head: bool = False
    decoder: Decoder = "generate"
    packed_steps: bool = False
    halves: Halves | None = None
    products: Products = "highest"
    block_masks: bool = False
    vllm: tuple[Any, Any] | None = None
    kernels: str | None = None

    @classmethod
    def objection(cls, model_type: str, gpu: bool | None = None) -> str | None:
        """Say why `--backend auto` does not take this library for a model, or None.

        `gpu`: is there one; None: look.
        """
        return None

    @classmethod
    def attends_itself(cls, model_type: str) -> str | None:
        """Return what `own_attention` will be for a model that is not loaded yet, by its `model_type`."""
        return None

    @classmethod  # noqa: B027  # most libraries need no order
    def import_first(cls) -> None:
        """Import what has to be imported before transformers."""

    @classmethod
    @abstractmethod
    def load(cls, config: TrainConfig, model: str) -> Backend:
        """Load a base (a folder or Hub id) and a fresh adapter, whose initialisation depends on `config.seed` only."""

    @property
    def base(self) -> Any:
        """The Hugging Face model under the adapter."""
        return self.model.get_base_model()

    @property
    def head(self) -> Head:
        """The output head, as the model applies it."""
        found = head_of(self.base)
        return found.plain() if self.plain_head else found

    @property
    def trunk(self) -> nn.Module:
        """The model below its output head.

        Raises:
            UsageError: transformers names none.
        """
        base = self.base
        trunk: Any = base.base_model
        if trunk is base:
            raise UsageError(
                f"{base.config.model_type} has no trunk apart from its output head: use a causal language model."
            )
        return trunk  # type: ignore[no-any-return]

    def parameters(self) -> list[nn.Parameter]:
        """Return the trainable parameters: the adapter's."""
        return [p for p in self.model.parameters() if p.requires_grad]

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Put the model into the mode in which it decodes, and back: gradient checkpointing switches the cache off."""
        with evaluating(self.model):
            yield

    def trunk_pass(self, **inputs: Any) -> Any:
        """Run the trunk; nothing of an earlier batch has a say. Returns its output, with `last_hidden_state`."""
        forget_positions(self.base)
        return self.trunk(**inputs)

    def full_pass(self, **inputs: Any) -> Any:
        """Run the model's own forward pass, as `trunk_pass`; returns its output, with `logits`."""
        forget_positions(self.base)
        return self.base(**inputs)

    def generate(self, **inputs: Any) -> Any:
        """Run the library's own `generate`, as `trunk_pass`."""
        forget_positions(self.base)
        return self.model.generate(**inputs)

    def check_width(self, tokens: int) -> None:  # noqa: B027  # most libraries take any length
        """Refuse a sequence that is longer than the library takes whole.

        Raises:
            DataError: the library would cut it.
        """

    @abstractmethod
    def save_adapter(self, folder: Path) -> None:
        """Write the adapter in peft's format, as safetensors."""
