"""W + (alpha/r) B A into the base's own files: in fp32, cast once. Nothing else is touched.

The base's files are read and written tensor by tensor, so parts that the training class does not know survive, and
memory is that of the largest adapted tensor in fp32, whatever the size of a file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from sdft_cli.errors import DataError, VerificationError
from sdft_cli.merge.tensor_file import DTYPES, FLOATS, TensorFile, bytes_of, header_of, layout

_PREFIX = "base_model.model."
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")
_INDEX = "model.safetensors.index.json"
_OURS = ("README.md", "merge-certificate.json", _INDEX)
"""Files that a checkpoint has of its own: its card, its certificate, its index."""
_QUANTISED = (".absmax", ".quant_map", ".qweight", ".weight_scale", ".weight_scale_inv")
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


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


def check_not_quantised(base: Path) -> None:
    """Refuse a base whose own tensors are quantised: base + delta has no place in them.

    Raises:
        DataError: they are.
    """
    config = json.loads((base / "config.json").read_bytes())
    sections = (config, *(value for value in config.values() if isinstance(value, dict)))
    found = next(("quantization_config in config.json" for s in sections if s.get("quantization_config")), None)
    for shard in base_shards(base):
        with TensorFile(shard) as file:
            for entry in file.entries.values():
                marked = ".quant_state." in entry.name or entry.name.endswith(_QUANTISED)
                if marked or entry.dtype not in DTYPES:
                    found = found or f"{entry.name}, {entry.dtype}"
    if found:
        raise DataError(
            f"{base} is a quantised model ({found}), and an adapter cannot be added to it exactly: "
            "give the 16-bit base, `sdft merge --base MODEL`."
        )


def merge_weights(base: Path, adapter: Adapter, out: Path, dtype: torch.dtype = torch.bfloat16) -> MergeCounts:
    """Write the base's files with the adapter added into `out`, and their index if the base has one.

    Raises:
        VerificationError: the adapter adapts a tensor that the base does not hold, or one of another shape.
        DataError: the base is quantised, or one of its files is damaged.
    """
    check_not_quantised(base)
    counts = MergeCounts()
    size = 0
    shards = base_shards(base)
    for shard in shards:
        with TensorFile(shard) as file:
            size += _merge_file(file, adapter, out / shard.name, dtype, counts)
    missing = sorted(set(adapter.names) - counts.adapted)
    if missing:
        raise VerificationError(
            f"The base holds no tensor {missing[0]} ({len(missing)} of {len(adapter.names)} adapted tensors are "
            "missing): is this the base that the adapter was trained on?"
        )
    if (base / _INDEX).is_file():
        index = json.loads((base / _INDEX).read_bytes())
        index["metadata"] = {**index.get("metadata", {}), "total_size": size}  # another one if the dtype is
        (out / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return counts


def _merge_file(file: TensorFile, adapter: Adapter, target: Path, dtype: torch.dtype, counts: MergeCounts) -> int:
    """Write one file of the checkpoint; return the bytes of its tensors."""
    wanted = set(adapter.names)
    new = {name: _NAMES[dtype] if e.dtype in FLOATS else e.dtype for name, e in file.entries.items()}
    ordered = layout((name, new[name], entry.shape) for name, entry in file.entries.items())
    header = header_of(ordered)
    with target.open("wb") as out:
        out.write(header)
        for name, _, _ in ordered:
            if name in wanted:
                out.write(bytes_of(_adapted(file, name, adapter, dtype)))
                counts.adapted.add(name)
            else:
                for piece in _untouched(file, name, DTYPES[new[name]]):
                    out.write(piece)
                counts.untouched += 1
        return out.tell() - len(header)


def _adapted(file: TensorFile, name: str, adapter: Adapter, dtype: torch.dtype) -> torch.Tensor:
    total = adapter.delta(name)
    if total.shape != file.entries[name].shape:
        raise VerificationError(
            f"{name} is {file.entries[name].shape} in the base and {tuple(total.shape)} in the adapter: is this the "
            "base that the adapter was trained on?"
        )
    return total.add_(file.tensor(name)).to(dtype)  # in the delta's fp32


def _untouched(file: TensorFile, name: str, dtype: torch.dtype) -> Iterator[bytearray | memoryview]:
    """Yield the bytes of a tensor that the adapter does not change: the very same, unless it has to be cast."""
    own = DTYPES[file.entries[name].dtype]
    for chunk in file.chunks(name):
        yield chunk if own == dtype else bytes_of(torch.frombuffer(chunk, dtype=own).to(dtype))


def copy_companions(base: Path, out: Path, dtype: str = "bfloat16") -> None:
    """Copy what a checkpoint needs besides weights (config, generation config, tokenizer, template, processor)."""
    for path in sorted(base.iterdir()):
        if not path.is_file() or path.suffix in _WEIGHT_SUFFIXES or path.name.startswith("."):
            continue
        if path.name not in _OURS:
            shutil.copyfile(path, out / path.name)
    config: dict[str, Any] = json.loads((out / "config.json").read_bytes())
    config.pop("torch_dtype", None)
    config["dtype"] = dtype
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
