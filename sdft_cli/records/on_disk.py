"""Sequences that lie in a temporary file: what is made of a source may be larger than memory."""

from __future__ import annotations

import os
import pickle
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from tempfile import TemporaryFile
from typing import Generic, TypeVar, overload

from sdft_cli.errors import MachineError

T = TypeVar("T")


def no_room(reason: object) -> MachineError:
    """Return the error of a temporary file that cannot be written."""
    return MachineError(f"Writing temporary files failed ({reason}): set TMPDIR to a larger disk.")


class OnDisk(Sequence[T], Generic[T]):
    """Items in the order in which they were appended, 8 bytes of memory each; reading one makes a new, equal object.

    The file has no name (`TMPDIR` says on which disk it is) and goes with the process or the last reference, so no kill
    leaves it behind. Only what this process wrote is ever unpickled. Raises `MachineError` if the disk is full.
    """

    def __init__(self, items: Iterable[T] = ()) -> None:
        self._file = TemporaryFile(prefix="sdft-")  # noqa: SIM115  closed when nothing refers to it any more
        self._ends = array("Q", [0])
        self._written = 0
        for item in items:
            self.append(item)

    def append(self, item: T) -> None:
        """Write one item behind the others."""
        data = pickle.dumps(item, protocol=5)
        try:
            self._file.write(data)
        except OSError as error:
            raise no_room(error.strerror or error) from error
        self._ends.append(self._ends[-1] + len(data))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self._read(i) for i in range(len(self))[index]]
        return self._read(range(len(self))[index])

    def __iter__(self) -> Iterator[T]:
        return map(self._read, range(len(self)))

    def _read(self, index: int) -> T:
        if self._written < len(self):
            try:
                self._file.flush()
            except OSError as error:
                raise no_room(error.strerror or error) from error
            self._written = len(self)
        start, end = self._ends[index : index + 2]
        item: T = pickle.loads(os.pread(self._file.fileno(), end - start, start))
        return item


class Changed(Sequence[T], Generic[T]):
    """A sequence seen through `change(index, item)`, which is asked anew at every look."""

    def __init__(self, items: Sequence[T], change: Callable[[int, T], T]) -> None:
        self._items, self._change = items, change

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        places = range(len(self))[index]
        if isinstance(places, range):
            return [self._change(i, self._items[i]) for i in places]
        return self._change(places, self._items[places])

    def __iter__(self) -> Iterator[T]:
        return (self._change(i, item) for i, item in enumerate(self._items))
