"""A model by its name, with the backend that can run it."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import torch

from sdft_cli.choices import BACKENDS
from sdft_cli.config import TrainConfig
from sdft_cli.engine.kernels.autocast import leave_inputs, needs_autocast
from sdft_cli.engine.kernels.check import check_kernels
from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.models.backend_transformers import PlainModel, Shard, TransformersBackend, load_model
from sdft_cli.engine.models.disk_names import is_quantised
from sdft_cli.engine.models.head_check import check_head
from sdft_cli.engine.models.names import resolve_model
from sdft_cli.engine.models.quiet import quiet_libraries
from sdft_cli.errors import MachineError, UsageError


def backend_class(name: str) -> type[Backend]:
    """Return the class of a backend of `choices.BACKENDS`."""
    module, _, cls = BACKENDS[name].partition(":")
    found: type[Backend] = getattr(importlib.import_module(module), cls)
    return found


def has_package(name: str) -> bool:
    """Say whether a package is installed, without importing it."""
    return importlib.util.find_spec(name) is not None


def choose_backend(requested: str, model_type: str) -> tuple[str, str]:
    """Return the backend to use and why; `auto` takes the first of `choices.BACKENDS` without an objection.

    Raises:
        MachineError: a backend was asked for whose package is not installed.
    """
    objections: list[str] = []
    for name in BACKENDS if requested == "auto" else (requested,):
        backend = backend_class(name)
        missing = backend.package is not None and not has_package(backend.package)
        if requested == name and missing:
            raise MachineError(
                f"The {name} backend needs {backend.package}, which is not installed: pip install 'sdft-cli[{name}]', "
                "or use --backend transformers."
            )
        objection = f"{backend.package} is not installed" if missing else backend.objection(model_type)
        if requested == name:
            return name, "as asked"
        if objection is None:
            return name, "; ".join(objections) or f"it is installed and supports {model_type}"
        objections.append(objection)
    raise MachineError(f"No backend runs {model_type} here: {'; '.join(objections)}.")


def choose_library(requested: str, model: str, revision: str | None) -> tuple[str, str]:
    """Choose the backend for a model, as `choose_backend`, and import its library: unsloth before transformers.

    What unsloth changes in transformers is missing in whatever was imported from it before, and it warns of that.

    Raises:
        UsageError, MachineError: as `choose_backend` and `model_type_of`, or the library does not import.
    """
    found = choose_backend(requested, model_type_of(model, revision))
    backend_class(found[0]).import_first()
    return found


def model_type_of(model: str, revision: str | None) -> str:
    """Return the `model_type` of a model's config.json, read without transformers.

    Raises:
        UsageError, MachineError: as `config_of`.
    """
    from huggingface_hub import hf_hub_download

    try:
        if Path(model).exists():
            file = Path(model) / "config.json"
        else:
            file = Path(hf_hub_download(model, "config.json", revision=revision or "main"))
        return str(json.loads(file.read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _no_config(model) from error


def _no_config(model: str) -> UsageError | MachineError:
    if Path(model).exists():
        return UsageError(f"{model} has no config.json that transformers knows: give a model folder.")
    return MachineError(
        f"Model {model} is no local folder and could not be loaded from the Hub: check the name and the network."
    )


def config_of(model: str, revision: str | None) -> Any:
    """Return a model's transformers config.

    Raises:
        UsageError: a local folder has no usable config.
        MachineError: the model is not local and the Hub cannot be reached.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model, revision=revision or "main")
    except (OSError, ValueError, KeyError) as error:
        raise _no_config(model) from error


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
    if config.fast_inference and not has_package("vllm"):
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


def check_merged_later(config: TrainConfig, merged_into: str | None) -> None:
    """Refuse to train on a base into which nothing can be merged, where no other one is named for that.

    Raises:
        UsageError: it is quantised on disk.
        MachineError: its config cannot be had.
    """
    if merged_into is None and is_quantised(config_of(resolve_model(config.model), config.revision)):
        raise UsageError(
            f"{config.model} is quantised, and an adapter cannot be merged into it: name its 16-bit form in sdft.yaml, "
            "merge: {base: MODEL}, or train that one."
        )


def load_backend(config: TrainConfig, name: str, model: str, shard: Shard | None = None) -> Backend:
    """Load the model (a folder or Hub id, already resolved) with a fresh adapter into the named backend.

    `shard`: cuts its layers into shards over several processes; transformers only.

    Raises:
        MachineError: as `check_machine` and `check_kernels`, or the backend does not do what the configuration asks
            for, or its logits are not the model's.
        UsageError: the configuration asks for something that this backend has not.
    """
    check_machine(config)
    backend = backend_class(name)
    for option, what in (("load_in_4bit", "4-bit weights"), ("fast_inference", "engine for sampling")):
        if getattr(config, option) and option not in backend.features:
            able = next(other for other in BACKENDS if option in backend_class(other).features)
            raise UsageError(
                f"The {name} backend has no {what}: use --backend {able}, or leave {option} out (--set {option}=false)."
            )
    loaded = TransformersBackend.load_in_parts(config, model, shard) if shard else backend.load(config, model)
    loaded.kernels = check_kernels(loaded.base, loaded.device)
    check_head(loaded)
    return loaded


def open_for_eval(model: str, dtype: str | None, revision: str | None, adapter: Path | None) -> TransformersBackend:
    """Load a model, with a trained adapter if there is one, for evaluation.

    Without one it is wrapped as `PlainModel`, so that the same code measures it.

    Raises:
        MachineError: its logits are not ours, or as `check_kernels`.
    """
    quiet_libraries()
    from peft import PeftModel

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = getattr(torch, dtype) if dtype else (torch.bfloat16 if device.type == "cuda" else torch.float32)
    base = load_model(model, chosen, device, revision)
    wrapped: Any = PeftModel.from_pretrained(base, str(adapter)) if adapter else PlainModel(base)
    if needs_autocast(chosen, device):
        leave_inputs(wrapped)
    backend = TransformersBackend(wrapped.eval(), device)
    backend.kernels = check_kernels(backend.base, device)
    check_head(backend)
    return backend
