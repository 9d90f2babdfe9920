"""The rows of a trace file that someone else wrote: each is an object with a name, or None if it is broken."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from sdft_cli.errors import DataError
from sdft_cli.traces.fields import name_of, no_surrogates
from sdft_cli.traces.packed import PACKED, opened

LOGS = (".jsonl", ".json")
"""The files of lines, which may be packed."""
SUFFIXES = (*LOGS, ".parquet", ".arrow")
"""The files that can hold sessions."""
LOG_LINES = "loglines"
"""The key under which some exports keep the lines of a Claude Code session, in one JSON document."""

Rows = Iterable[tuple[str, dict[str, Any] | None]]
"""Named rows of a file (`name:line` or `name[index]`); None where one is no JSON object."""


def suffix_of(path: Path) -> str:
    """Return the suffix that says how a file is read: that of `x.jsonl.gz` is `.jsonl`."""
    inner = Path(path.stem).suffix if path.suffix in PACKED else ""
    return inner if inner in LOGS else path.suffix


def _decode(data: bytes) -> Any:
    """Decode JSON; raises ValueError or RecursionError.

    msgspec is the fast road; it refuses lone surrogates and NaN, which real sessions contain, so those lines take
    the standard library's decoder.
    """
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return no_surrogates(json.loads(data))


def decode_line(line: bytes) -> dict[str, Any] | None:
    """Decode one line to an object, or None if it is not one."""
    try:
        value = _decode(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _numbered(lines: Iterable[bytes]) -> Iterator[tuple[int, dict[str, Any] | None]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, decode_line(line)


def _document(path: Path) -> tuple[list[dict[str, Any] | None], bool]:
    """Return the objects of a JSON document, None for what is none, and whether they are lines of a misnamed log.

    They are the elements of a list, the `loglines` of an export, or the document itself.
    """
    with opened(path) as file:
        data = file.read()
    try:
        value = _decode(data)
    except (ValueError, RecursionError):
        start = data.lstrip().split(b"\n", 1)
        log = len(start) > 1 and decode_line(start[0]) is not None
        return ([row for _, row in _numbered(data.split(b"\n"))] if log else [None]), log
    if isinstance(value, dict) and isinstance(value.get(LOG_LINES), list):
        value = value[LOG_LINES]
    return [row if isinstance(row, dict) else None for row in (value if isinstance(value, list) else [value])], False


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yield `(line number from 1, object or None)` for each non-blank line; splits on `\\n` only.

    The elements of a JSON document count as its lines. Raises `DataError` if a packed file cannot be unpacked.
    """
    if suffix_of(path) == ".json":
        yield from enumerate(_document(path)[0], start=1)
        return
    with opened(path) as file:
        yield from _numbered(file)


def is_one_object(path: Path) -> bool:
    """Say whether a file is a JSON document that holds one object, as settings and metadata beside sessions do."""
    if suffix_of(path) != ".json":
        return False
    rows, log = _document(path)
    return not log and len(rows) == 1 and rows[0] is not None


def _without_nulls(value: Any) -> Any:
    """Drop the null keys that Parquet's struct columns pad every row with."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


_BATCH_ROWS = 16
"""Rows that are in memory at a time: each may be a whole session."""


def _parquet_rows(path: Path) -> Iterator[Any]:
    """Rows of a Parquet file, a batch at a time. It is opened here: to many readers a path is a pattern."""
    from datasets import Features
    from pyarrow.parquet import ParquetFile

    with path.open("rb") as file:
        table = ParquetFile(file)
        features = Features.from_arrow_schema(table.schema_arrow)
        for batch in table.iter_batches(_BATCH_ROWS):
            yield from map(features.decode_example, batch.to_pylist())


def _arrow_rows(path: Path) -> Iterator[Any]:
    """Rows of an Arrow file as `datasets` saves it."""
    from datasets import Dataset

    yield from Dataset.from_file(str(path))


def _table_rows(path: Path) -> Rows:
    """Rows of a table; raises `DataError` where it cannot be read."""
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _arrow_rows(path)
    try:
        for index, row in enumerate(rows):
            yield f"{name_of(path)}[{index}]", _without_nulls(row)
    except Exception as error:  # datasets wraps pyarrow's errors in several classes of its own
        raise DataError(
            f"{name_of(path)} cannot be read as a table ({type(error).__name__}): check the file."
        ) from error


def rows_of(path: Path) -> Rows:
    """Yield the named rows of a file, None for what is no JSON object; raises `DataError` for an unreadable file."""
    suffix = suffix_of(path)
    if suffix == ".jsonl":
        yield from ((f"{name_of(path)}:{number}", row) for number, row in read_lines(path))
    elif suffix == ".json":
        yield from ((f"{name_of(path)}[{number - 1}]", row) for number, row in read_lines(path))
    else:
        yield from _table_rows(path)
