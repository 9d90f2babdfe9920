"""Packed files (`.gz`, `.zst`) as streams: unpacked while they are read, and never beyond what a session can be."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from sdft_cli.errors import DataError
from sdft_cli.traces.fields import name_of

PACKED = (".gz", ".zst")
MOST_EXPANSION = 200
"""How many times its packed size a file may become. Sessions become 5 to 20 times as large."""
FREE_BYTES = 16 * 2**20
"""Up to this size a file may expand as it likes: a short session may repeat one line."""


class _Unpacked(io.RawIOBase):
    """The unpacked bytes of `packed`; raises `DataError` where they are damaged or far too many."""

    def __init__(self, path: Path, packed: BinaryIO) -> None:
        self._path = path
        self._packed = packed
        self._size = 0
        if path.suffix == ".gz":
            self._stream: BinaryIO = cast(BinaryIO, gzip.GzipFile(fileobj=packed))
        else:
            from pyarrow import CompressedInputStream

            self._stream = CompressedInputStream(packed, "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            data = self._stream.read(len(buffer))
        except (EOFError, OSError, ValueError, zlib.error) as error:
            raise DataError(
                f"{name_of(self._path)} cannot be unpacked ({type(error).__name__}): it is damaged, copy it anew."
            ) from error
        self._size += len(data)
        if self._size > max(FREE_BYTES, MOST_EXPANSION * self._packed.tell()):
            raise DataError(
                f"{name_of(self._path)} expands more than {MOST_EXPANSION}-fold: no session does; "
                "unpack it yourself if it is one."
            )
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading bytes, unpacked if it is packed; reading raises `DataError` if it is damaged."""
    with path.open("rb") as file:
        yield cast(BinaryIO, io.BufferedReader(_Unpacked(path, file), 2**16)) if path.suffix in PACKED else file
