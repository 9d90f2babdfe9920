"""A model by its name, with the backend that can run it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

from sdft_cli.config import TrainConfig
from sdft_cli.engine.models.backend import UNSLOTH_FAST_TYPES, Backend
from sdft_cli.engine.models.backend_transformers import PlainModel, TransformersBackend, load_model
from sdft_cli.engine.models.quiet import quiet_libraries
from sdft_cli.errors import MachineError, UsageError

UNSLOTH_VISION_TYPES = frozenset({"qwen3_5", "qwen3_5_moe", "gemma3"})
"""`model_type`s with a vision tower that `FastModel` names. They need a GPU: its CPU backend loads text models only."""

UNSLOTH_MODEL_TYPES = UNSLOTH_FAST_TYPES | UNSLOTH_VISION_TYPES
"""`model_type`s for which `--backend auto` prefers unsloth. `test_backend_unsloth.py` reads them in its source."""


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
    if config.min_gpu_gb is None:
        return
    need = f" with at least {config.min_gpu_gb:g} GB"
    if not torch.cuda.is_available():
        raise MachineError(
            f"Profile {config.profile} needs a CUDA GPU{need} and this machine has none: try --profile cpu-demo."
        )
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9
    if memory < config.min_gpu_gb:
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
        from sdft_cli.engine.models.backend_unsloth import UnslothBackend

        return UnslothBackend.load(config, model)
    from sdft_cli.engine.models.backend_transformers import TransformersBackend

    return TransformersBackend.load(config, model)


def open_for_eval(model: str, dtype: str | None, revision: str | None, adapter: Path | None) -> TransformersBackend:
    """Load a model, with a trained adapter if there is one, for evaluation.

    Without one it is wrapped as `PlainModel`, so that the same code measures it.
    """
    quiet_libraries()
    from peft import PeftModel

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = getattr(torch, dtype) if dtype else (torch.bfloat16 if device.type == "cuda" else torch.float32)
    base = load_model(model, chosen, device, revision)
    wrapped: Any = PeftModel.from_pretrained(base, str(adapter)) if adapter else PlainModel(base)
    return TransformersBackend(wrapped.eval(), device)
