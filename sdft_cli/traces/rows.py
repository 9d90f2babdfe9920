"""The rows of a trace file that someone else wrote: each is an object with a name, or None if it is broken."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from sdft_cli.errors import DataError

SUFFIXES = (".jsonl", ".json", ".parquet", ".arrow")
"""The files that can hold sessions."""

Rows = Iterable[tuple[str, dict[str, Any] | None]]
"""Named rows of a file (`name:line` or `name[index]`); None where one is no JSON object."""


def _no_surrogates(value: Any) -> Any:
    """Replace lone surrogates, which no UTF-8 file can hold, by U+FFFD in every string of `value`."""
    if isinstance(value, str):
        if value.isprintable():  # surrogates are not printable
            return value
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_no_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_no_surrogates(key): _no_surrogates(item) for key, item in value.items()}
    return value


def decode_line(line: bytes) -> dict[str, Any] | None:
    """Decode one line to an object, or None if it is not one.

    msgspec is the fast road; it refuses lone surrogates and NaN, which real sessions contain, so those lines take
    the standard library's decoder.
    """
    try:
        value = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        try:
            value = _no_surrogates(json.loads(line))
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yield `(line number from 1, object or None)` for each non-blank line; splits on `\\n` only."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, decode_line(line)


def _json_rows(path: Path) -> Rows:
    """A list of objects, or one object."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        value = None
    for index, row in enumerate(value if isinstance(value, list) else [value]):
        yield f"{path.name}[{index}]", row if isinstance(row, dict) else None


def _without_nulls(value: Any) -> Any:
    """Drop the null keys that Parquet's struct columns pad every row with."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _table_rows(path: Path) -> Rows:
    """Rows of a Parquet file, or of an Arrow file as `datasets` saves it."""
    from datasets import Dataset, disable_progress_bars, enable_progress_bars

    disable_progress_bars()
    try:
        load = Dataset.from_parquet if path.suffix == ".parquet" else Dataset.from_file
        rows = load(str(path))
    except Exception as error:  # datasets wraps pyarrow's errors in several classes of its own
        raise DataError(f"{path} cannot be read as a table ({type(error).__name__}): check the file.") from error
    finally:
        enable_progress_bars()
    for index, row in enumerate(rows):
        yield f"{path.name}[{index}]", _without_nulls(row)


def rows_of(path: Path) -> Rows:
    """Yield the named rows of a file, None for what is no JSON object; raises `DataError` for an unreadable table."""
    if path.suffix == ".jsonl":
        yield from ((f"{path.name}:{number}", row) for number, row in read_lines(path))
    elif path.suffix == ".json":
        yield from _json_rows(path)
    else:
        yield from _table_rows(path)
