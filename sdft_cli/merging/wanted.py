"""What each parameter should have become, computed apart from the code that merged.

A plain adapter: W + (alpha/r) B A, from its own configuration and tensors. Any other: by peft itself (`by_peft.py`).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from sdft_cli.engine.models.disk_names import DiskNames
from sdft_cli.errors import VerificationError
from sdft_cli.merging.adapter import Adapter
from sdft_cli.merging.by_peft import ByPeft


class Wanted:
    """Parameters as base and adapter on disk make them."""

    def __init__(self, adapter: Adapter, names: DiskNames | None) -> None:
        self._folder = adapter.folder
        self._adapter = adapter
        self._plain = _plain_modules(adapter.folder, names) if adapter.plain else {}
        self._peft = ByPeft(adapter.folder, names) if names is not None and not adapter.plain else None

    def unread(self) -> list[str]:
        """Return the parameters that a plain adapter's file changes and the adapter, as it was read, does not."""
        return sorted(self._plain.keys() - self._adapter.updates.keys())

    def __call__(self, parameter: str, base: Tensor) -> Tensor:
        """Return what a parameter should be, in fp32, shaped as the adapter makes it."""
        if parameter in self._plain:
            module, scaling = self._plain[parameter]
            with safe_open(self._folder / "adapter_model.safetensors", "pt") as file:
                a, b = (file.get_tensor(f"{module}.lora_{x}.weight").float() for x in "AB")
            change: Tensor = (b @ a).mul_(scaling)
            return base.float() + change if change.shape == base.shape else change
        update = self._adapter.updates[parameter]
        if "rows" in update.keys:
            rows = torch.tensor(update.indices)
            return base.float().index_copy(0, rows, self._adapter.tensor(update, "rows"))
        start = self._adapter.tensor(update, "start") if "start" in update.keys else base
        if "A" not in update.keys:
            return start.float()
        if self._peft is None:
            raise VerificationError(f"What {parameter} should be is not known without its base: merge it with peft.")
        return self._peft.merged(parameter, start)


def _plain_modules(folder: Path, names: DiskNames | None) -> dict[str, tuple[str, float]]:
    """Return, for each parameter that a plain adapter changes, its module's name in the file and alpha / r."""
    config = json.loads((folder / "adapter_config.json").read_bytes())
    scaling = config["lora_alpha"] / config["r"]
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        modules = {k.removesuffix(".lora_A.weight") for k in file.keys() if k.endswith(".lora_A.weight")}  # noqa: SIM118
    found = {}
    for module in modules:
        parameter = module.removeprefix("base_model.model.") + ".weight"
        at_run_time = None if names is None else names.at_run_time(parameter)
        found[at_run_time or parameter] = (module, scaling)
    return found
