"""The transformers + peft backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sdft_cli.config import TrainConfig
from sdft_cli.engine.kernels.autocast import autocast_passes, leave_inputs, needs_autocast
from sdft_cli.engine.kernels.cudnn import leave_cudnn_attention
from sdft_cli.engine.models.adapters import lora_layers
from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.models.modes import switch_off_dropout, train_adapter_only
from sdft_cli.engine.models.quiet import quiet_libraries
from sdft_cli.engine.models.targets import hits, target_names, target_pattern
from sdft_cli.errors import MachineError, UsageError

Shard = Callable[[Any, torch.device], object]
"""Takes a peft model from the CPU to a device, its layers in shards."""


def model_class(config: Any) -> Any:
    """Return the auto class that keeps all of a checkpoint: the multimodal one where there is a vision tower.

    The text-only class would load such a checkpoint and silently drop its vision tower.
    """
    import transformers

    if getattr(config, "vision_config", None) is not None:
        return getattr(transformers, "AutoModelForMultimodalLM", None) or transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM


def empty_model(model_config: Any, cls: Any = None) -> Any:
    """Return a model without weights (on torch's meta device) from its config: its modules, names and sizes.

    Args:
        model_config: of transformers.
        cls: an auto class; left out, the one that keeps all of the checkpoint.

    Raises:
        UsageError: there is no such model: an encoder-decoder, or no language model, or a config that is wrong.
    """
    kind = cls or model_class(model_config)
    try:
        with torch.device("meta"):
            return kind.from_config(model_config).requires_grad_(False)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        if "Unrecognized configuration class" not in reason:
            raise UsageError(
                f"transformers builds no {model_config.model_type} model from this config ({type(error).__name__}: "
                f"{reason}): correct config.json."
            ) from error
        raise UsageError(
            f"{model_config.model_type} is no model that transformers loads as {kind.__name__}: use a causal language "
            "model."
        ) from error


def load_model(
    model: str,
    dtype: torch.dtype,
    device: torch.device,
    revision: str | None = None,
    cls: Any = None,
    stays: bool = False,
) -> Any:
    """Load a model for inference, in eval mode, frozen and without dropout, from safetensors; no remote code.

    In 16 bits on a GPU its passes are under autocast.

    Args:
        model: a folder or Hub id.
        dtype: of all weights.
        device: where it goes.
        revision: of a Hub id.
        cls: an auto class; left out, the one that keeps all of the checkpoint.
        stays: leave it on the CPU, for somebody who takes it to the device part by part.
    """
    quiet_libraries()
    leave_cudnn_attention()
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, revision=revision or "main")
    loaded = (cls or model_class(config)).from_pretrained(model, dtype=dtype, revision=revision or "main")
    switch_off_dropout(loaded)
    loaded = (loaded if stays else loaded.to(device)).eval().requires_grad_(False)
    if needs_autocast(dtype, device):
        autocast_passes(loaded, dtype, device)
    return loaded


def attach_lora(model: Any, config: TrainConfig) -> Any:
    """Put a fresh adapter (B = 0) on the language trunk; its weights are fp32 whatever the base is.

    Raises:
        UsageError: a target name hits no linear layer of the language trunk.
        MachineError: peft put the adapter elsewhere.
    """
    from peft import LoraConfig, get_peft_model

    names = target_names(model, config.lora.target_modules)
    lora = LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=target_pattern(model, names),
        bias="none",
        task_type="CAUSAL_LM",
    )
    asked = set(hits(model, names))
    peft_model = get_peft_model(model, lora, autocast_adapter_dtype=True)
    moved = asked ^ lora_layers(peft_model.get_base_model()).keys()
    if moved:
        raise MachineError(
            f"peft does not adapt {min(moved)} of this {model.config.model_type} model as it was asked to: leave its "
            "name out of lora.target_modules, or install another version of peft."
        )
    return peft_model


class TransformersBackend(Backend):
    """Plain Hugging Face model, peft adapter."""

    name = "transformers"

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model = model
        self.device = device

    @classmethod
    def load(cls, config: TrainConfig, model: str) -> TransformersBackend:
        """Load base and fresh adapter; the adapter's initialisation depends on `config.seed` only."""
        return cls.load_in_parts(config, model)

    @classmethod
    def load_in_parts(cls, config: TrainConfig, model: str, shard: Shard | None = None) -> TransformersBackend:
        """As `load`; `shard` takes the model from the CPU to the device, where it may be too large for one."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        base = load_model(model, getattr(torch, config.dtype), device, config.revision, stays=shard is not None)
        torch.manual_seed(config.seed)
        peft_model = attach_lora(base, config)
        if needs_autocast(base.dtype, device):
            leave_inputs(peft_model)
        if config.gradient_checkpointing:
            peft_model.enable_input_require_grads()
            base.gradient_checkpointing_enable({"use_reentrant": False})
        train_adapter_only(peft_model)
        found = cls(peft_model, device)
        if shard is not None:
            shard(peft_model, device)
            found.sharded = True
        return found

    def save_adapter(self, folder: Path) -> None:
        self.model.save_pretrained(folder, safe_serialization=True)


class PlainModel(torch.nn.Module):
    """A model without an adapter behind the few methods of a peft model that the engine uses."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base

    def get_base_model(self) -> Any:
        return self.base

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """There is none to disable."""
        yield

    def generate(self, **arguments: Any) -> Any:
        return self.base.generate(**arguments)
