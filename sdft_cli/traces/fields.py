"""Fields of objects that someone else wrote: anything may stand in any of them. And what stands for a picture."""

from __future__ import annotations

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
