"""The small interface between the algorithm and the library that runs the model; and which library to take."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from sdft_cli.config import TrainConfig
from sdft_cli.errors import MachineError, UsageError

if TYPE_CHECKING:
    from sdft_cli.engine.vllm_sampler import VllmSampler

Sharing = Literal["none", "packed", "depth_first"]

UNSLOTH_FAST_TYPES = frozenset({"llama", "mistral", "gemma", "gemma2", "qwen2", "qwen3"})
"""`model_type`s for which `FastLanguageModel` has kernels of its own; it hands all others to `FastModel`."""
UNSLOTH_VISION_TYPES = frozenset({"qwen3_5", "qwen3_5_moe", "gemma3"})
"""`model_type`s with a vision tower that `FastModel` names. They need a GPU: its CPU backend loads text models only."""
UNSLOTH_MODEL_TYPES = UNSLOTH_FAST_TYPES | UNSLOTH_VISION_TYPES
"""`model_type`s for which `--backend auto` prefers unsloth. `tests/engine/test_unsloth.py` reads them in its source."""


class Backend(ABC):
    """A causal language model with one LoRA adapter on its language trunk.

    `model` is the peft model; `device` is where its inputs go. The base weights are frozen and never written.
    `sharing` says how common prefixes are computed (`engine/executors.py`), `segment_tokens` how many tokens a
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
    sampler: VllmSampler | None = None

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


def has_unsloth() -> bool:
    """Say whether the unsloth package is installed, without importing it."""
    return importlib.util.find_spec("unsloth") is not None


def choose_backend(requested: str, model_type: str) -> tuple[str, str]:
    """Return the backend to use and why.

    Raises:
        MachineError: unsloth was asked for and is not installed.
    """
    if requested == "unsloth" and not has_unsloth():
        raise MachineError("The unsloth backend needs the package unsloth: install it, or use --backend transformers.")
    if requested != "auto":
        return requested, "as asked"
    if not has_unsloth():
        return "transformers", "unsloth is not installed"
    if model_type not in UNSLOTH_MODEL_TYPES:
        return "transformers", f"unsloth is not known to support {model_type}"
    if model_type in UNSLOTH_VISION_TYPES and not torch.cuda.is_available():
        return "transformers", f"without a GPU, unsloth would drop the vision tower of {model_type}"
    return "unsloth", f"it is installed and supports {model_type}"


def model_type_of(model: str, revision: str | None) -> str:
    """Read a model's `model_type` from its config.

    Raises:
        UsageError: a local folder has no usable config.
        MachineError: the model is not local and the Hub cannot be reached.
    """
    from transformers import AutoConfig

    try:
        return str(AutoConfig.from_pretrained(model, revision=revision or "main").model_type)
    except (OSError, ValueError, KeyError) as error:
        if Path(model).exists():
            raise UsageError(f"{model} has no config.json that transformers knows: give a model folder.") from error
        raise MachineError(
            f"Model {model} is no local folder and could not be loaded from the Hub: check the name and the network."
        ) from error


def check_machine(config: TrainConfig) -> None:
    """Refuse a profile that this machine cannot run, before anything is loaded.

    Raises:
        MachineError: names what the profile needs and the profile to try instead.
    """
    for option in ("fast_inference", "load_in_4bit"):
        if getattr(config, option) and not torch.cuda.is_available():
            raise MachineError(
                f"{option} needs a CUDA GPU and this machine has none: leave it out (--set {option}=false)."
            )
    if config.fast_inference and importlib.util.find_spec("vllm") is None:
        raise MachineError(
            "fast_inference samples with vLLM, which is not installed: pip install vllm, or leave it out "
            "(--set fast_inference=false), and unsloth's own generate samples."
        )
    if config.device != "cuda":
        return
    need = f" with at least {config.min_gpu_gb:g} GB" if config.min_gpu_gb else ""
    if not torch.cuda.is_available():
        raise MachineError(
            f"Profile {config.profile} needs a CUDA GPU{need} and this machine has none: try --profile cpu-demo."
        )
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9
    if config.min_gpu_gb and memory < config.min_gpu_gb:
        raise MachineError(
            f"Profile {config.profile} needs a CUDA GPU{need} and this one has {memory:.0f} GB: use a larger card, or "
            "lower max_seq_tokens and set min_gpu_gb in a profile of your own."
        )


def load_backend(config: TrainConfig, name: str, model: str) -> Backend:
    """Load the model (a folder or Hub id, already resolved) with a fresh adapter into the named backend.

    Raises:
        MachineError: as `check_machine`, or the backend does not do what the configuration asks for.
        UsageError: the configuration asks for something that this backend has not.
    """
    check_machine(config)
    for option, what in (("load_in_4bit", "4-bit weights"), ("fast_inference", "engine for sampling")):
        if getattr(config, option) and name != "unsloth":
            raise UsageError(
                f"The {name} backend has no {what}: use --backend unsloth, or leave {option} out "
                f"(--set {option}=false)."
            )
    if name == "unsloth":
        from sdft_cli.engine.backend_unsloth import UnslothBackend

        return UnslothBackend.load(config, model)
    from sdft_cli.engine.backend_transformers import TransformersBackend

    return TransformersBackend.load(config, model)
