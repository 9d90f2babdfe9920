"""JSON Lines that someone else wrote: every line is either an object or counted as broken, with its number."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec


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
