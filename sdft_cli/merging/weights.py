"""W + (alpha/r) B A into the base's own files: in fp32, cast once. Nothing else is touched.

Where loading makes one parameter of several tensors on disk, these are read, changed as one, and taken apart again.

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

from sdft_cli.engine.models.disk_names import DiskNames, Group
from sdft_cli.errors import DataError, VerificationError
from sdft_cli.merging.adapter import Adapter
from sdft_cli.merging.places import Places
from sdft_cli.merging.tensor_file import DTYPES, FLOATS, TensorFile, bytes_of, header_of, layout
from sdft_cli.notices import progress
from sdft_cli.records.json_files import read_json

_WEIGHT_SUFFIXES = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf"),
    *(".h5", ".msgpack", ".ot", ".onnx", ".onnx_data", ".tflite"),
)
_TEMPLATES = "additional_chat_templates"
_CHAT_TEMPLATE = "chat_template.jinja"
"""A tokenizer's further templates: the one sub-folder that belongs to a checkpoint."""
_INDEX = "model.safetensors.index.json"
_OURS = ("README.md", "merge-certificate.json", _INDEX)
"""Files that a checkpoint has of its own: its card, its certificate, its index."""
_GET_AGAIN = "get the model again"
_QUANTISED = (".absmax", ".quant_map", ".qweight", ".weight_scale", ".weight_scale_inv")
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


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


def merge_weights(
    base: Path, adapter: Adapter, out: Path, dtype: torch.dtype = torch.bfloat16, names: DiskNames | None = None
) -> None:
    """Write the base's files with the adapter added into `out`, and their index if the base has one.

    Args:
        base, out: folders.
        adapter: what is added.
        dtype: of the merged weights.
        names: of the base; without it parameters have the same names on disk as in the adapter.

    Raises:
        VerificationError: the adapter adapts a tensor that the base does not hold, or one of another shape.
        DataError: the base is quantised, or one of its files is damaged, or the adapter cannot be written into it.
    """
    check_not_quantised(base)
    size, main = 0, main_dtype(base)
    changed = _Changed(base, adapter, Places(adapter, names))
    for shard in base_shards(base):
        with TensorFile(shard) as file:
            size += _merge_file(file, changed, out / shard.name, main, dtype)
    if (base / _INDEX).is_file():
        index = read_json(base / _INDEX, _GET_AGAIN)
        index["metadata"] = {**(index.get("metadata") or {}), "total_size": size}  # another one if the dtype is
        (out / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


class _Changed:
    """The tensors on disk that change: made when the first of a group is asked for, kept until each was taken.

    Raises:
        VerificationError: the base does not hold one of them.
    """

    def __init__(self, base: Path, adapter: Adapter, places: Places) -> None:
        self._adapter, self._places = adapter, places
        self._made: dict[str, torch.Tensor] = {}
        self._where: dict[str, Path] = {}
        self._written = 0
        for shard in base_shards(base):
            with TensorFile(shard) as file:
                self._where |= dict.fromkeys(file.entries, shard)
        missing = places.groups.keys() - self._where.keys()
        if missing:
            raise VerificationError(
                f"The base holds no tensor {min(missing)} ({len(missing)} of {len(places.groups)} adapted tensors are "
                "missing): is this the base that the adapter was trained on?"
            )

    def __contains__(self, name: str) -> bool:
        return name in self._places.groups

    def written(self) -> None:
        """Count one more tensor on disk, changed or not."""
        self._written += 1
        progress("Merging tensors", self._written, len(self._where))

    def take(self, name: str) -> torch.Tensor:
        """Return a tensor with the adapter in it, in fp32, once."""
        if name not in self._made:
            self._made |= self._make(self._places.groups[name])
        return self._made.pop(name)

    def _make(self, group: Group) -> dict[str, torch.Tensor]:
        parameters = self._places.to_model(group, {name: self._read(name) for name in group.disk})
        owners = self._places.owners
        for name, tensor in parameters.items():
            parameters[name] = self._adapter.updated(owners[name], tensor) if name in owners else tensor.float()
        return self._places.to_disk(group, parameters)

    def _read(self, name: str) -> torch.Tensor:
        with TensorFile(self._where[name]) as file:
            return file.tensor(name)


def _merge_file(file: TensorFile, changed: _Changed, target: Path, main: str, dtype: torch.dtype) -> int:
    """Write one file of the checkpoint; return the bytes of its tensors."""
    new = {
        name: _NAMES[dtype] if name in changed or entry.dtype == main else entry.dtype
        for name, entry in file.entries.items()
    }
    ordered = layout((name, new[name], entry.shape) for name, entry in file.entries.items())
    header = header_of(ordered)
    with target.open("wb") as out:
        out.write(header)
        for name, _, _ in ordered:
            if name in changed:
                out.write(bytes_of(changed.take(name).to(dtype)))
            else:
                for piece in _untouched(file, name, DTYPES[new[name]]):
                    out.write(piece)
            changed.written()
        return out.tell() - len(header)


def _untouched(file: TensorFile, name: str, dtype: torch.dtype) -> Iterator[bytearray | memoryview]:
    """Yield the bytes of a tensor that the adapter does not change: the very same, unless it has to be cast."""
    own = DTYPES[file.entries[name].dtype]
    for chunk in file.chunks(name):
        yield chunk if own == dtype else bytes_of(torch.frombuffer(chunk, dtype=own).to(dtype))


def copy_companions(base: Path, out: Path, dtype: str = "bfloat16", chat_template: str | None = None) -> None:
    """Copy what a checkpoint needs besides weights (config, generation config, tokenizer, templates, processor).

    The config says the weights' dtype, in each section that named the base's. `chat_template` takes the place of the
    base's own: the one that the model was trained with.

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
    if chat_template is not None:
        (out / _CHAT_TEMPLATE).write_bytes(chat_template.encode())
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
