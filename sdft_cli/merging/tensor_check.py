"""Is the folder the base with this adapter added, and nothing else? Read from disk, tensor by tensor and file by file.

Sums are made again from the files (`wanted.py`), by none of the code that merged; where the parameters stand on disk is
said by transformers.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sdft_cli.engine.models.disk_names import DiskNames, Group
from sdft_cli.errors import DataError
from sdft_cli.merging.adapter import Adapter
from sdft_cli.merging.places import Places
from sdft_cli.merging.wanted import Wanted
from sdft_cli.notices import tracked

WEIGHTS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf"),
    *(".h5", ".msgpack", ".ot", ".onnx", ".onnx_data", ".tflite"),
)
INDEX = "model.safetensors.index.json"
FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
OURS = {"README.md", "merge-certificate.json"}
"""Files of a checkpoint that are not the base's: the model card and the certificate."""
DTYPE_KEYS = {"dtype", "torch_dtype"}
"""Keys of `config.json`, at any depth, that a merge sets."""
TEMPLATES = "additional_chat_templates"
"""The one sub-folder of a checkpoint."""
CHAT_TEMPLATE = "chat_template.jinja"
"""What transformers prefers to a template in `tokenizer_config.json`."""
PIECE = 1 << 20
"""Elements that are compared at once."""
EOS_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class AdaptedTensor:
    """A tensor that the adapter changes. `ulps`: largest distance from the fp32 sum, in units of the last place.

    `surviving_share`: of the elements that the delta would change, the share that differ from the base in this dtype.
    """

    name: str
    ulps: int
    surviving_share: float


@dataclass
class Certificate:
    """What was compared. `failures`: sentences; empty if the checkpoint is what it claims to be."""

    dtype: str
    adapted: list[AdaptedTensor] = field(default_factory=list)
    identical: int = 0
    cast: int = 0
    files: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


class Tensors:
    """The weights of a folder (the files of its index, else model.safetensors) as one mapping, read tensor by tensor.

    A file is mapped into memory for one tensor only: pages of a mapping that stays open add up to the whole file.
    `main` is the float dtype of most elements; of equals the first in `FLOATS`.

    Raises:
        DataError: there are none, or one cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = folder / INDEX
        names = set(_weight_map(index).values()) if index.is_file() else {"model.safetensors"}
        paths = [folder / name for name in sorted(names)]
        self.files = {path.name for path in paths}
        self.where: dict[str, Path] = {}
        elements: Counter[str] = Counter()
        for path in paths:
            if not path.is_file():
                raise DataError(f"{path.name} is missing: merge again.")
            try:
                opened = safe_open(path, "pt")
            except (SafetensorError, OSError) as error:
                raise DataError(f"{path.name} is damaged ({error}): merge again, with enough free space.") from error
            for name in opened.keys():  # noqa: SIM118  # safe_open is no mapping
                if name in self.where:
                    raise DataError(f"{name} is in {self.where[name].name} and in {path.name}: merge again.")
                self.where[name] = path
                stored = opened.get_slice(name)
                elements[stored.get_dtype()] += math.prod(stored.get_shape())
        self.main = FLOATS[max(FLOATS, key=lambda name: elements[name])]

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self.where[name], "pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor


def ordered(tensor: Tensor) -> Tensor:
    """Map floats to integers in their order, neighbours one apart, so that differences are units in the last place."""
    bits = tensor.contiguous().view({2: torch.int16, 4: torch.int32}[tensor.element_size()]).to(torch.int64)
    sign = torch.iinfo({2: torch.int16, 4: torch.int32}[tensor.element_size()]).min
    return torch.where(bits < 0, sign - bits, bits)


def distance(a: Tensor, b: Tensor) -> int:
    """Return the largest distance of two tensors of one dtype and shape, in units of the last place."""
    if torch.equal(_raw(a), _raw(b)):  # nearly always; the subtraction takes int64
        return 0
    return int((ordered(a) - ordered(b)).abs().max())


def same_bytes(a: Tensor, b: Tensor) -> bool:
    """Say whether two tensors are the same bits, `a` cast to the type of `b`; NaNs of the same bits are equal."""
    return a.shape == b.shape and all(torch.equal(_raw(x.to(y.dtype)), _raw(y)) for x, y in _pieces(a, b))


def _raw(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield tensors of one shape in step, flat and piece by piece: what is computed from a piece is small."""
    return zip(*(t.reshape(-1).split(PIECE) for t in tensors), strict=True)


def certify(
    base: Path,
    adapter: Path,
    merged: Path,
    dtype: torch.dtype,
    names: DiskNames | None = None,
    chat_template: str | None = None,
) -> Certificate:
    """Compare a merged checkpoint on disk with what the base and the adapter on disk make.

    Args:
        base, adapter, merged: folders.
        dtype: of the merged weights, bfloat16 or float32.
        names: of the base; without it parameters have the same names on disk as in the adapter.
        chat_template: that the checkpoint has instead of the base's.

    Raises:
        DataError: base or adapter cannot be read; a merged file that cannot is a failure of the certificate.
    """
    found = Certificate(str(dtype).removeprefix("torch."))
    bases = Tensors(base)
    change = Adapter(adapter, names)
    places, wanted = Places(change, names), Wanted(change, names)
    try:
        new = Tensors(merged)
    except DataError as error:
        found.failures.append(str(error))
        return found
    found.failures += [f"{name} is adapted and was left out" for name in wanted.unread()]
    found.failures += _keys_differ(bases, new, places.groups)
    common = bases.where.keys() & new.where.keys()
    for name in tracked(sorted(common), "Comparing tensors"):
        problem = _compare_tensor(name, bases, new, name in places.groups, dtype, found)
        if problem:
            found.failures.append(problem)
    groups = {group.disk: group for _, group in sorted(places.groups.items())}.values()
    for group in tracked(groups, "Comparing adapted tensors"):
        if common.issuperset(group.disk) and not any(bases[n].shape != new[n].shape for n in group.disk):
            found.failures += _compare_group(group, places, wanted, bases, new, found)
    found.failures += _index_differs(merged, new)
    found.failures += list(_files_differ(base, merged, found, chat_template))
    return found


def _keys_differ(bases: Tensors, new: Tensors, adapted: Mapping[str, object]) -> list[str]:
    found = []
    for what, names in (
        ("is missing from the checkpoint", bases.where.keys() - new.where.keys()),
        ("is in the checkpoint and not in the base", new.where.keys() - bases.where.keys()),
        ("is adapted and not in the base", adapted.keys() - bases.where.keys()),
    ):
        if names:
            found.append(f"{min(names)} {what} ({len(names)} such tensors)")
    return found


def _compare_tensor(
    name: str, bases: Tensors, new: Tensors, adapted: bool, dtype: torch.dtype, found: Certificate
) -> str | None:
    """Say what is wrong with a tensor on disk but for what the adapter changes in it."""
    before, after = bases[name], new[name]
    if before.shape != after.shape:
        return f"{name} has the shape {tuple(after.shape)}, in the base {tuple(before.shape)}"
    expected_type = dtype if adapted or before.dtype == bases.main else before.dtype
    if after.dtype != expected_type:
        return f"{name} is {after.dtype}, not {expected_type}"
    if adapted:
        return None
    found.identical += before.dtype == expected_type
    found.cast += before.dtype != expected_type
    return None if same_bytes(before, after) else f"{name} is not adapted and differs from the base"


def _compare_group(
    group: Group, places: Places, wanted: Wanted, bases: Tensors, new: Tensors, found: Certificate
) -> Iterator[str]:
    """Compare the parameters that loading makes of some tensors; of those with a name of their own, that is told."""
    before = places.to_model(group, {name: bases[name] for name in group.disk})
    after = places.to_model(group, {name: new[name] for name in group.disk})
    for parameter in group.parameters:
        name = group.disk[0] if len(group.disk) == len(group.parameters) == 1 else parameter
        owner = places.owners.get(parameter)
        if owner is None:
            problem = None if same_bytes(before[parameter], after[parameter]) else f"{name} differs from the base"
        else:
            expected = wanted(owner, before[parameter])
            problem = _compare_adapted(name, before[parameter], expected, after[parameter], found)
        if problem:
            yield problem


def _compare_adapted(name: str, before: Tensor, expected: Tensor, after: Tensor, found: Certificate) -> str | None:
    if expected.shape != before.shape:
        return f"{name} has the shape {tuple(before.shape)}, its update {tuple(expected.shape)}"
    ulps = changed = surviving = differing = 0
    finite = True
    for was, should, now in _pieces(before, expected, after):
        ulps = max(ulps, distance(now, should.to(now.dtype)))
        finite = finite and bool(now.isfinite().all())
        differs, moved = now != was.to(now.dtype), should != was.float()
        changed += int(moved.sum())
        surviving += int((moved & differs).sum())
        differing += int(differs.sum())
    found.adapted.append(AdaptedTensor(name, ulps, surviving / changed if changed else 0.0))
    if ulps > 1 or not finite:
        return f"{name} is not base + (alpha / r) B A: {ulps} units in the last place away"
    if changed and not differing:
        return f"{name} equals the base: its update vanishes in {found.dtype} (merge with --dtype float32)"
    return None


def _document(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path.name} is damaged ({type(error).__name__}): merge again.") from error
    if not isinstance(found, dict):
        raise DataError(f"{path.name} is no JSON object: merge again.")
    return found


def _weight_map(index: Path) -> dict[str, str]:
    listed = _document(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()) or not listed:
        raise DataError(f"{index.name} names no weight files: merge again.")
    return listed


def _index_differs(merged: Path, new: Tensors) -> list[str]:
    unlisted = {path.name for path in merged.glob("*.safetensors")} - new.files
    if unlisted:
        return [f"{min(unlisted)} is no file of the checkpoint"]
    index = merged / INDEX
    if index.is_file() and _weight_map(index) != {name: path.name for name, path in new.where.items()}:
        return ["model.safetensors.index.json does not say where the tensors are"]
    return []


def _files_differ(base: Path, merged: Path, found: Certificate, chat_template: str | None) -> Iterator[str]:
    """Compare all files but weights: tokenizer, templates, configurations, processors; note how each one compares."""
    names = {
        path.relative_to(folder).as_posix()
        for folder in (base, merged)
        for path in (*folder.iterdir(), *(folder / TEMPLATES).glob("*"))
        if path.is_file() and path.suffix not in WEIGHTS and not path.name.startswith(".")
    }
    names |= set() if chat_template is None else {CHAT_TEMPLATE}
    for name in sorted(names - OURS - {INDEX}):
        before, after = base / name, merged / name
        if name == CHAT_TEMPLATE and chat_template is not None:
            same = after.is_file() and after.read_bytes() == chat_template.encode()
            found.files[name] = "the run's own" if same else "differs"
            if not same:
                yield f"{name} is not the one that the adapter was trained with"
            continue
        if not (before.is_file() and after.is_file()):
            found.files[name] = "missing" if before.is_file() else "not in the base"
            yield f"{name} is {'missing' if before.is_file() else 'in the checkpoint and not in the base'}"
            continue
        same = before.read_bytes() == after.read_bytes()
        try:
            if name == "config.json":
                problem = _config_differs(before, after, found.dtype)
            else:
                problem = None if same else f"{name} differs from the base's{_eos_change(before, after)}"
        except DataError as error:
            problem = str(error)
        found.files[name] = "differs" if problem else "identical" if same else "identical but for dtype"
        if problem:
            yield problem


def _config_differs(before: Path, after: Path, dtype: str) -> str | None:
    """Say what is wrong with the config: it is the base's, its dtype that of the weights, of a section the base's own.

    Raises:
        DataError: one of the two is damaged.
    """
    old, new = _document(before), _document(after)
    if _apart_from_dtype(old) != _apart_from_dtype(new):
        return f"config.json differs from the base's{_eos_change(before, after)}"
    for key, absent in (("dtype", None), ("torch_dtype", dtype)):
        if new.get(key, absent) != dtype:
            return f"config.json says {key} is {new.get(key)}, not {dtype}"
    was, now = _section_dtypes(old), _section_dtypes(new)
    for key in sorted(was.keys() | now.keys()):
        if now.get(key) not in (was.get(key), dtype):
            return f"config.json says {key} is {now.get(key)}, in the base {was.get(key)}"
    return None


def _apart_from_dtype(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _apart_from_dtype(inner) for key, inner in value.items() if key not in DTYPE_KEYS}
    return value


def _section_dtypes(section: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Return the dtypes of the sections below, under names such as `text_config.dtype`."""
    found: dict[str, Any] = {}
    for name, inner in section.items():
        if isinstance(inner, dict):
            found |= {f"{at}{name}.{key}": inner[key] for key in DTYPE_KEYS & inner.keys()}
            found |= _section_dtypes(inner, f"{at}{name}.")
    return found


def _eos_change(before: Path, after: Path) -> str:
    if before.name not in EOS_FILES:
        return ""
    found = []
    for path in (before, after):
        document = _document(path)
        found.append({key: document[key] for key in ("eos_token_id", "eos_token") if key in document})
    return f" (end of turn: {found[1]}, in the base {found[0]})" if found[0] != found[1] else ""
