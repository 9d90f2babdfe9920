"""W + (alpha/r) B A, shard by shard into the base's own files: in fp32, cast once. Nothing else is touched.

The base's files are read tensor by tensor, so parts that the training class does not know survive.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sdft_cli.errors import DataError, VerificationError

_PREFIX = "base_model.model."
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")
_INDEX = "model.safetensors.index.json"


@dataclass
class MergeCounts:
    """What the merge did."""

    adapted: set[str] = field(default_factory=set)
    untouched: int = 0


class Adapter:
    """A peft LoRA adapter on disk: `delta(name)` is what it adds to the weight `name`."""

    def __init__(self, folder: Path) -> None:
        config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_bytes())
        unsupported = [key for key in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern") if config.get(key)]
        if unsupported:
            raise DataError(f"The adapter uses {unsupported[0]}, which sdft merge does not know: merge it with peft.")
        self.scaling = config["lora_alpha"] / config["r"]
        self._file = safe_open(folder / "adapter_model.safetensors", "pt")
        keys = set(self._file.keys())
        self.names = sorted(
            key.removeprefix(_PREFIX).removesuffix(".lora_A.weight") + ".weight"
            for key in keys
            if key.endswith(".lora_A.weight")
        )
        if len(self.names) * 2 != len(keys):
            raise DataError("The adapter holds tensors besides lora_A and lora_B pairs: merge it with peft.")

    def delta(self, name: str) -> torch.Tensor:
        """Return (alpha/r) B A in fp32, shaped like the weight."""
        module = _PREFIX + name.removesuffix(".weight")
        a = self._file.get_tensor(f"{module}.lora_A.weight").float()
        b = self._file.get_tensor(f"{module}.lora_B.weight").float()
        delta: torch.Tensor = (b @ a).mul_(self.scaling)
        return delta


def base_shards(base: Path) -> list[Path]:
    """Return the base's safetensors files in order.

    Raises:
        DataError: the folder holds no safetensors weights.
    """
    if (base / _INDEX).is_file():
        names = set(json.loads((base / _INDEX).read_bytes())["weight_map"].values())
        return [base / name for name in sorted(names)]
    if (base / "model.safetensors").is_file():
        return [base / "model.safetensors"]
    raise DataError(f"{base} holds no model.safetensors: convert the base to safetensors first.")


def merge_weights(base: Path, adapter: Adapter, out: Path, dtype: torch.dtype = torch.bfloat16) -> MergeCounts:
    """Write the base's shards with the adapter added into `out`.

    Raises:
        VerificationError: the adapter adapts a tensor that the base does not hold.
    """
    counts = MergeCounts()
    wanted = set(adapter.names)
    for shard in base_shards(base):
        tensors: dict[str, torch.Tensor] = {}
        with safe_open(shard, "pt") as file:
            for name in file.keys():  # noqa: SIM118  # safe_open is no mapping
                weight = file.get_tensor(name)
                if name in wanted:
                    tensors[name] = (weight.float() + adapter.delta(name)).to(dtype)
                    counts.adapted.add(name)
                else:
                    tensors[name] = weight.to(dtype) if weight.is_floating_point() else weight
                    counts.untouched += 1
        save_file(tensors, out / shard.name, metadata={"format": "pt"})
    missing = sorted(wanted - counts.adapted)
    if missing:
        raise VerificationError(
            f"The base holds no tensor {missing[0]} ({len(missing)} of {len(wanted)} adapted tensors are missing): "
            "is this the base that the adapter was trained on?"
        )
    return counts


def copy_companions(base: Path, out: Path, dtype: str = "bfloat16") -> None:
    """Copy what a checkpoint needs besides weights (config, generation config, tokenizer, template, processor)."""
    for path in sorted(base.iterdir()):
        if path.is_file() and path.suffix not in _WEIGHT_SUFFIXES and not path.name.startswith("."):
            shutil.copyfile(path, out / path.name)
    config: dict[str, Any] = json.loads((out / "config.json").read_bytes())
    config.pop("torch_dtype", None)
    config["dtype"] = dtype
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
