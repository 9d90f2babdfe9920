"""A dataset folder read piece by piece, for looking at it: the row groups and columns that are asked for, no others.

What is read is checked as it comes (columns, numbers of rows, damaged pages). Hashes are not: that takes reading all
of it, as `read_dataset` does before anything is computed from a dataset.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sdft_cli.errors import DataError
from sdft_cli.records.dataset import COLUMNS, read_manifest, session_of
from sdft_cli.records.types import RecordRow, Rejection, Session

SPLITS = ("train", "validation")
_LIST = re.compile(r"\.list\.(element|item)\b")


def leaves(columns: dict[str, Any], before: str = "") -> list[str]:
    """Return the names of all columns that hold values, as in `messages.tool_calls.name`."""
    found: list[str] = []
    for name, kind in columns.items():
        found += leaves(kind[0], f"{before}{name}.") if isinstance(kind, list) else [before + name]
    return found


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet ({error}): run `sdft prepare` again.") from error


@dataclass(frozen=True)
class SessionGroup:
    """Sessions that lie together in the file, as Arrow arrays of those columns that were asked for.

    The messages of the i-th session are `starts[i]` to `starts[i + 1]` in every array that `of` returns.
    """

    ids: Sequence[str]
    starts: Sequence[int]
    messages: Any

    def of(self, name: str) -> Any:
        """Return a column of the messages, e.g. `content`: an array with an item per message."""
        import pyarrow.compute as pc

        return pc.struct_field(self.messages, name)

    def calls(self) -> tuple[Any, Any]:
        """Return the tool calls of all messages, an array of structures, and the index of the message of each."""
        import pyarrow.compute as pc

        lists = self.of("tool_calls")
        return lists.flatten(), pc.list_parent_indices(lists)


class LazyDataset:
    """A dataset folder on disk. Every method raises `DataError` where a file is missing, foreign or damaged."""

    def __init__(self, folder: Path) -> None:
        """Read the manifest; raises as `read_manifest`."""
        self.path = folder
        self.manifest = read_manifest(folder)

    @cached_property
    def session_ids(self) -> list[str]:
        """The names of all sessions, in the order of the file."""
        return [name for ids in self._ids_by_group for name in ids]

    @cached_property
    def _ids_by_group(self) -> list[list[str]]:
        with _reading(self._path("sessions")):
            file = self._sessions
            groups = range(file.num_row_groups)
            return [file.read_row_group(i, columns=["session_id"])[0].to_pylist() for i in groups]

    def session(self, session_id: str) -> Session:
        """Return a session whole; raises KeyError if there is none of this name."""
        for index, ids in enumerate(self._ids_by_group):
            if session_id in ids:
                with _reading(self._path("sessions")):
                    group = self._sessions.read_row_group(index)
                    return session_of(group.slice(ids.index(session_id), 1).to_pylist()[0])
        raise KeyError(session_id)

    def groups(self, columns: Sequence[str], only: Collection[str] | None = None) -> Iterator[SessionGroup]:
        """Read one row group of sessions after the other.

        Args:
            columns: of the messages: `role`, `content`, `tool_calls.name` ...
            only: skip row groups that hold none of these sessions.
        """
        leaf_of = {_LIST.sub("", path): path for path in self._leaf_paths(self._sessions)}
        wanted = [leaf_of[f"messages.{name}"] for name in columns]
        for index, ids in enumerate(self._ids_by_group):
            if only is not None and not any(name in only for name in ids):
                continue
            with _reading(self._path("sessions")):
                table = self._sessions.read_row_group(index, columns=wanted)
                lists = table["messages"].combine_chunks()
            yield SessionGroup(ids, lists.offsets.to_pylist(), lists.values)

    def table(self, name: str) -> Any:
        """Return `train`, `validation` or `rejected` as an Arrow table."""
        with _reading(self._path(name)):
            return self._open(name).read()

    def records(self, split: str, session_id: str | None = None) -> list[RecordRow]:
        """Return the rows of a split, of one session or of all."""
        return [RecordRow(**row) for row in self._rows(split, session_id)]

    def rejected(self, session_id: str | None = None) -> list[Rejection]:
        """Return the dropped turns of one session or of all."""
        return [Rejection(**row) for row in self._rows("rejected", session_id)]

    def _rows(self, table: str, session_id: str | None) -> list[dict[str, Any]]:
        import pyarrow.compute as pc

        found = self.table(table)
        if session_id is not None:
            found = found.filter(pc.equal(found["session_id"], session_id))
        rows: list[dict[str, Any]] = found.to_pylist()
        return rows

    @cached_property
    def _sessions(self) -> Any:
        return self._open("sessions")

    def _path(self, table: str) -> Path:
        return self.path / f"{table}.parquet"

    def _open(self, table: str) -> Any:
        import pyarrow.parquet as pq

        path = self._path(table)
        if not path.is_file():
            raise DataError(f"{path} is missing: the dataset is incomplete; run `sdft prepare` again.")
        with _reading(path):
            file = pq.ParquetFile(path)
            names = [_LIST.sub("", leaf) for leaf in self._leaf_paths(file)]
        if names != leaves(COLUMNS[table]):
            raise DataError(f"{path} has other columns than this version of sdft reads: run `sdft prepare` again.")
        if file.metadata.num_rows != self.manifest.get("files", {}).get(path.name, {}).get("rows"):
            raise DataError(f"{path} is not the file that the manifest describes: run `sdft prepare` again.")
        return file

    @staticmethod
    def _leaf_paths(file: Any) -> list[str]:
        return [file.schema.column(i).path for i in range(len(file.schema))]
