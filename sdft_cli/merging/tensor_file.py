"""safetensors files read and written piece by piece, so that memory does not grow with the file.

The form (https://huggingface.co/docs/safetensors): 8 bytes with the length of the header, little-endian; the header,
JSON, name -> dtype, shape and offsets into the data; the data. The library maps a whole file into memory and its
writer wants all tensors at once; here a tensor is a range of bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch

from sdft_cli.errors import DataError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
FLOATS = ("F64", "F32", "F16", "BF16")
CHUNK = 16 << 20
"""Bytes that are read at once. A multiple of every element's size."""


@dataclass(frozen=True)
class Entry:
    """A tensor of a file: its name, dtype and shape, and where its bytes begin."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


class TensorFile:
    """A safetensors file, open for reading. `entries`: by name, in the order of their bytes.

    Raises:
        DataError: the file is missing, damaged, or cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file: BinaryIO = path.open("rb")
        except FileNotFoundError as error:
            raise DataError(f"{path} is missing: get the model again.") from error
        try:
            self.entries = self._read_header()
        except (ValueError, KeyError, TypeError) as error:
            self._file.close()
            raise DataError(f"{path} is no whole safetensors file ({error}): get the model again.") from error

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def _read_header(self) -> dict[str, Entry]:
        total = self.path.stat().st_size
        length = int.from_bytes(self._file.read(8), "little")
        if total < 8 or length > total - 8:
            raise ValueError("its header is cut off")
        header = json.loads(self._file.read(length))
        header.pop("__metadata__", None)
        found = []
        for name, said in header.items():
            first, last = said["data_offsets"]
            found.append(Entry(name, said["dtype"], tuple(said["shape"]), 8 + length + first, last - first))
        found.sort(key=lambda entry: (entry.start, entry.size))
        if max((entry.start + entry.size for entry in found), default=8 + length) != total:
            raise ValueError("its data is cut off")
        return {entry.name: entry for entry in found}

    def chunks(self, name: str) -> Iterator[bytearray]:
        """Yield the bytes of a tensor in order, `CHUNK` at a time."""
        entry = self.entries[name]
        self._file.seek(entry.start)
        left = entry.size
        while left:
            chunk = bytearray(min(left, CHUNK))
            if self._file.readinto(chunk) != len(chunk):  # type: ignore[attr-defined]
                raise DataError(f"{self.path} ends inside {name}: get the model again.")
            left -= len(chunk)
            yield chunk

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor, in memory of its own."""
        entry = self.entries[name]
        flat = torch.empty(math.prod(entry.shape), dtype=DTYPES[entry.dtype])
        raw = flat.view(torch.uint8)
        at = 0
        for chunk in self.chunks(name):
            raw[at : at + len(chunk)] = torch.frombuffer(chunk, dtype=torch.uint8)
            at += len(chunk)
        return flat.view(entry.shape)


Planned = tuple[str, str, tuple[int, ...]]
"""A tensor to be written: name, dtype, shape."""


def layout(planned: Iterable[Planned]) -> list[Planned]:
    """Return the order on disk: wide elements first, so that each tensor begins at a multiple of its element's size."""
    return sorted(planned, key=lambda item: -_width(item[1]))  # stable: else as given


def header_of(ordered: Iterable[Planned]) -> bytes:
    """Return everything that stands before the data, for tensors in this order without gaps."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, dtype, shape in ordered:
        size = math.prod(shape) * _width(dtype)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return a tensor's elements as bytes, without a copy if it is contiguous."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _width(dtype: str) -> int:
    return DTYPES[dtype].itemsize
