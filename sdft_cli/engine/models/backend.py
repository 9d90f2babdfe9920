"""The small interface between the algorithm and the library that runs the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

Sharing = Literal["none", "packed", "depth_first"]

UNSLOTH_FAST_TYPES = frozenset({"llama", "mistral", "gemma", "gemma2", "qwen2", "qwen3"})
"""`model_type`s for which `FastLanguageModel` has kernels of its own; it hands all others to `FastModel`."""


class Backend(ABC):
    """A causal language model with one LoRA adapter on its language trunk.

    `model` is the peft model; `device` is where its inputs go. The base weights are frozen and never written.
    `sharing` says how common prefixes are computed (`engine/passes/executors.py`), `segment_tokens` how many tokens a
    depth-first pass has; `takes_masks`, whether the library leaves masks and attention to us; `mergeable`, whether the
    adapter can be added to the base weights (not to 4-bit ones); `sampler` is an engine that samples rollouts, if the
    library brings one.
    """

    name: str
    model: Any
    device: torch.device
    sharing: Sharing = "none"
    segment_tokens: int = 2048
    takes_masks: bool = True
    mergeable: bool = True
    vllm: tuple[Any, Any] | None = None

    @property
    def base(self) -> Any:
        """The Hugging Face model under the adapter."""
        return self.model.get_base_model()

    @property
    def head(self) -> Tensor:
        """(V, H) weight of the output head."""
        weight: Tensor = self.base.get_output_embeddings().weight
        return weight

    @property
    def trunk(self) -> nn.Module:
        """The model below its output head."""
        trunk: nn.Module = self.base.model
        return trunk

    def parameters(self) -> list[nn.Parameter]:
        """Return the trainable parameters: the adapter's."""
        return [p for p in self.model.parameters() if p.requires_grad]

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Put the model into the mode in which it decodes, and back: gradient checkpointing switches the cache off."""
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)

    def check_width(self, tokens: int) -> None:  # noqa: B027  # most libraries take any length
        """Refuse a sequence that is longer than the library takes whole.

        Raises:
            DataError: the library would cut it.
        """

    @abstractmethod
    def save_adapter(self, folder: Path) -> None:
        """Write the adapter in peft's format, as safetensors."""
