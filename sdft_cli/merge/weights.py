"""W + (alpha/r) B A into the base's own files: in fp32, cast once. Nothing else is touched.

If other weights are asked for than the base mainly has, what has its main dtype is cast. Tensors that the base keeps in
another float dtype, as Qwen3.5 keeps `A_log` in fp32, stay as they are.

The base's files are read and written tensor by tensor, so parts that the training class does not know survive, and
memory is that of the largest adapted tensor in fp32, whatever the size of a file.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sdft_cli.errors import DataError, VerificationError
from sdft_cli.merge.tensor_file import DTYPES, FLOATS, TensorFile, bytes_of, header_of, layout
from sdft_cli.records.json_files import read_json

_PREFIX = "base_model.model."
_WEIGHT_SUFFIXES = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf"),
    *(".h5", ".msgpack", ".ot", ".onnx", ".onnx_data", ".tflite"),
)
_TEMPLATES = "additional_chat_templates"
"""A tokenizer's further templates: the one sub-folder that belongs to a checkpoint."""
_INDEX = "model.safetensors.index.json"
_OURS = ("README.md", "merge-certificate.json", _INDEX)
"""Files that a checkpoint has of its own: its card, its certificate, its index."""
_GET_AGAIN = "get the model again"
_QUANTISED = (".absmax", ".quant_map", ".qweight", ".weight_scale", ".weight_scale_inv")
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Adapter:
    """A peft LoRA adapter on disk: `delta(name)` is what it adds to the weight `name`.

    Raises:
        DataError: it is damaged, holds no tensors, or is of a kind that is merged in another way.
    """

    def __init__(self, folder: Path) -> None:
        try:
            config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_bytes())
            self.rank: int = config["r"]
            self.scaling = config["lora_alpha"] / self.rank
            self._file = safe_open(folder / "adapter_model.safetensors", "pt")
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError, SafetensorError) as error:
            raise DataError(
                f"{folder} holds no whole adapter ({type(error).__name__}: {error}): run `sdft train` again."
            ) from error
        unsupported = [key for key in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern") if config.get(key)]
        if unsupported:
            raise DataError(f"The adapter uses {unsupported[0]}, which sdft merge does not know: merge it with peft.")
        keys = set(self._file.keys())
        self.names = sorted(
            key.removeprefix(_PREFIX).removesuffix(".lora_A.weight") + ".weight"
            for key in keys
            if key.endswith(".lora_A.weight")
        )
        if not keys:
            raise DataError(f"{folder / 'adapter_model.safetensors'} holds no tensors: run `sdft train` again.")
        if keys != {_key(name, side) for name in self.names for side in "AB"}:
            raise DataError("The adapter holds tensors besides lora_A and lora_B pairs: merge it with peft.")

    def delta(self, name: str) -> torch.Tensor:
        """Return (alpha/r) B A in fp32, shaped like the weight.

        Raises:
            DataError: A is not (r, in) or B is not (out, r).
        """
        a, b = (self._file.get_tensor(_key(name, side)).float() for side in "AB")
        if a.dim() != 2 or len(a) != self.rank or b.shape[1:] != (self.rank,):
            raise DataError(
                f"The adapter's A {tuple(a.shape)} and B {tuple(b.shape)} of {name} are not of its rank {self.rank}: "
                "run `sdft train` again."
            )
        delta: torch.Tensor = (b @ a).mul_(self.scaling)
        return delta


def _key(name: str, side: str) -> str:
    return f"{_PREFIX}{name.removesuffix('.weight')}.lora_{side}.weight"


def base_shards(base: Path) -> list[Path]:
    """Return the base's safetensors files in order.

    Raises:
        DataError: the folder holds no safetensors weights, or its index is damaged.
    """
    if (base / _INDEX).is_file():
        listed = read_json(base / _INDEX, _GET_AGAIN).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise DataError(f"{base / _INDEX} names no weight files: {_GET_AGAIN}.")
        return [base / name for name in sorted(set(map(str, listed.values())))]
    if (base / "model.safetensors").is_file():
        return [base / "model.safetensors"]
    raise DataError(f"{base} holds no model.safetensors: convert the base to safetensors first.")


def main_dtype(base: Path) -> str:
    """Return the float dtype of most elements of a base, as safetensors names it; of equals the first by name.

    Raises:
        DataError: as `base_shards`, or a file is damaged.
    """
    elements: Counter[str] = Counter()
    for shard in base_shards(base):
        with TensorFile(shard) as file:
            for entry in file.entries.values():
                if entry.dtype in FLOATS:
                    elements[entry.dtype] += math.prod(entry.shape)
    return max(sorted(elements), key=lambda name: elements[name], default="BF16")


def check_not_quantised(base: Path) -> None:
    """Refuse a base whose own tensors are quantised: base + delta has no place in them.

    Raises:
        DataError: they are, or a file is damaged.
    """
    config = read_json(base / "config.json", _GET_AGAIN)
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


def merge_weights(base: Path, adapter: Adapter, out: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write the base's files with the adapter added into `out`, and their index if the base has one.

    Raises:
        VerificationError: the adapter adapts a tensor that the base does not hold, or one of another shape.
        DataError: the base is quantised, or one of its files is damaged.
    """
    check_not_quantised(base)
    size, main = 0, main_dtype(base)
    missing = set(adapter.names)
    for shard in base_shards(base):
        with TensorFile(shard) as file:
            size += _merge_file(file, adapter, out / shard.name, main, dtype)
            missing -= file.entries.keys()
    if missing:
        raise VerificationError(
            f"The base holds no tensor {min(missing)} ({len(missing)} of {len(adapter.names)} adapted tensors are "
            "missing): is this the base that the adapter was trained on?"
        )
    if (base / _INDEX).is_file():
        index = read_json(base / _INDEX, _GET_AGAIN)
        index["metadata"] = {**(index.get("metadata") or {}), "total_size": size}  # another one if the dtype is
        (out / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _merge_file(file: TensorFile, adapter: Adapter, target: Path, main: str, dtype: torch.dtype) -> int:
    """Write one file of the checkpoint; return the bytes of its tensors."""
    wanted = set(adapter.names)
    new = {
        name: _NAMES[dtype] if name in wanted or entry.dtype == main else entry.dtype
        for name, entry in file.entries.items()
    }
    ordered = layout((name, new[name], entry.shape) for name, entry in file.entries.items())
    header = header_of(ordered)
    with target.open("wb") as out:
        out.write(header)
        for name, _, _ in ordered:
            if name in wanted:
                out.write(bytes_of(_adapted(file, name, adapter, dtype)))
            else:
                for piece in _untouched(file, name, DTYPES[new[name]]):
                    out.write(piece)
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
    """Copy what a checkpoint needs besides weights (config, generation config, tokenizer, templates, processor).

    The config says the weights' dtype, in each section that named the base's.

    Raises:
        DataError: the base's config is damaged.
    """
    for path in sorted([*base.iterdir(), *(base / _TEMPLATES).glob("*")]):
        if not path.is_file() or path.suffix in _WEIGHT_SUFFIXES or path.name.startswith("."):
            continue
        if path.name not in _OURS:
            target = out / path.relative_to(base)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
    main = str(DTYPES[main_dtype(base)]).removeprefix("torch.")
    config = _with_dtype(read_json(base / "config.json", _GET_AGAIN), main, dtype)
    config.pop("torch_dtype", None)
    config["dtype"] = dtype
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _with_dtype(section: dict[str, Any], main: str, dtype: str) -> dict[str, Any]:
    found = {}
    for key, value in section.items():
        if isinstance(value, dict):
            value = _with_dtype(value, main, dtype)
        found[key] = dtype if key in ("dtype", "torch_dtype") and value == main else value
    return found
