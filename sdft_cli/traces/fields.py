"""Fields of objects and names of files that someone else wrote: anything may stand in any of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

IMAGE, DOCUMENT, FILE = "[image]", "[document]", "[file]"
"""What stands in a text for what is none."""


def text_of(data: Any, key: str) -> str:
    """Return `data[key]` if it is text, else ""."""
    value = data.get(key) if isinstance(data, dict) else None
    return value if isinstance(value, str) else ""


def object_of(data: Any, key: str) -> dict[str, Any]:
    """Return `data[key]` if it is an object, else an empty one."""
    value = data.get(key) if isinstance(data, dict) else None
    return value if isinstance(value, dict) else {}


def objects_of(data: Any, key: str) -> list[dict[str, Any]]:
    """Return the objects in the list `data[key]`."""
    value = data.get(key) if isinstance(data, dict) else None
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def no_surrogates(value: Any) -> Any:
    """Replace lone surrogates, which no UTF-8 file can hold, by U+FFFD in every string of `value`."""
    if isinstance(value, str):
        if value.isprintable():  # surrogates are not printable
            return value
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [no_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {no_surrogates(key): no_surrogates(item) for key, item in value.items()}
    return value


def parsed(text: str) -> Any:
    """Parse JSON that stands as a text in a row; raises ValueError or RecursionError.

    An escape may spell a lone surrogate there, which the row itself no longer holds.
    """
    value = json.loads(text)
    return no_surrogates(value) if "\\u" in text else value


def name_of(path: Path) -> str:
    """Return a file's name as text that can be written; what is no UTF-8 in it becomes U+FFFD."""
    return str(no_surrogates(path.name))


def stem_of(path: Path) -> str:
    """Return the name without its suffix, as `name_of` does."""
    return str(no_surrogates(path.stem))
