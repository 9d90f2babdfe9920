"""What peft itself makes of one parameter: the arbiter for adapters that do more than add (alpha/r) B A.

The module that holds the parameter is put, alone, at its place in an otherwise empty model, gets the adapter's own
configuration and tensors by peft's functions, and is merged by peft.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from sdft_cli.engine.models.disk_names import DiskNames
from sdft_cli.errors import VerificationError
from sdft_cli.merging.adapter import PREFIX


class ByPeft:
    """An adapter as peft reads it."""

    def __init__(self, folder: Path, names: DiskNames) -> None:
        """Open an adapter.

        Args:
            folder: of the adapter.
            names: of the base.
        """
        from peft import PeftConfig

        self._config: Any = PeftConfig.from_pretrained(str(folder))
        self._names = names
        self._modules = {name for name, _ in names.model.named_modules()}
        self._file = folder / "adapter_model.safetensors"
        self._keys: dict[str, dict[str, str]] = {}
        with safe_open(self._file, "pt") as file:
            for key in file.keys():  # noqa: SIM118  # safe_open is no mapping
                if ".lora_" in key:
                    module, _, rest = key.removeprefix(PREFIX).partition(".lora_")
                    path, _, inner = module.partition(".base_layer")
                    owner = self._owner(path)
                    depth = module.removeprefix(path) if inner or module != path else ""
                    self._keys.setdefault(owner, {})[f"{owner}{depth}.lora_{rest}"] = key

    def _owner(self, path: str) -> str:
        if path in self._modules:
            return path
        found = self._names.at_run_time(f"{path}.weight")
        return path if found is None else found.removesuffix(".weight")

    def merged(self, parameter: str, base: Tensor) -> Tensor:
        """Return what a parameter becomes, in fp32.

        Args:
            parameter: its name in the model; LoRA of any sort changes it.
            base: what it is in the base.

        Raises:
            VerificationError: peft puts nothing on it.
        """
        from peft import inject_adapter_in_model, set_peft_model_state_dict

        owner, _, leaf = parameter.rpartition(".")
        module = deepcopy(self._names.model.get_submodule(owner))
        for name, other in list(module.named_parameters(recurse=False)):  # peft wants all of them in memory
            value = base.float().clone() if name == leaf else torch.empty(other.shape)
            setattr(module, name, nn.Parameter(value, requires_grad=False))
        alone = _at(owner, module)
        inject_adapter_in_model(self._only(owner, module), alone)
        set_peft_model_state_dict(alone, self._tensors(owner))
        layer: Any = alone.get_submodule(owner)
        while getattr(layer, "parameter_name", leaf) != leaf:
            layer = layer.base_layer
        if not hasattr(layer, "merge"):
            raise VerificationError(f"peft puts no adapter on {parameter}: merge it with peft.")
        layer.merge()
        found: Tensor = getattr(layer.get_base_layer(), leaf).detach()
        return found

    def _only(self, owner: str, module: nn.Module) -> Any:
        """Return the adapter's configuration for one module; its patterns go by the module's full name."""
        found = deepcopy(self._config)
        wanted = found.target_parameters or []
        names = [f"{owner}.{name}" for name, _ in module.named_parameters(recurse=False)]
        stacked = [n for n in names if any(n == w or n.endswith(f".{w}") for w in wanted)]
        found.target_modules, found.target_parameters = ([], stacked) if stacked else ([owner], None)
        found.exclude_modules = found.modules_to_save = found.trainable_token_indices = None
        found.layers_to_transform = found.layers_pattern = found.task_type = found.base_model_name_or_path = None
        found.bias, found.init_lora_weights, found.inference_mode = "none", False, True
        return found

    def _tensors(self, owner: str) -> Mapping[str, Tensor]:
        with safe_open(self._file, "pt") as file:
            return {name: file.get_tensor(key).float() for name, key in self._keys.get(owner, {}).items()}


def _at(path: str, module: nn.Module) -> nn.Module:
    """Return a model that holds a module at a path, and nothing else."""
    top = torch.nn.Module()
    place = top
    *parents, last = path.split(".")
    for part in parents:
        inner = torch.nn.Module()
        place.add_module(part, inner)
        place = inner
    place.add_module(last, module)
    return top
