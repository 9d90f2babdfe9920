"""Values that a syntax writes as raw text, typed by the tool's schema and by nothing else."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote

from sdft_cli.prompts.syntaxes.turns import Tools

_PYTHON_WORDS = {"True": True, "False": False, "None": None}
"""How a template writes booleans and null outside strings, objects and lists: with Python's `str`."""


def _referred(reference: str, root: Any) -> Any:
    """Follow a reference inside a schema; None, which says nothing, if it leads out of it or nowhere."""
    if reference.partition("/")[0] != "#":
        return None
    schema = root
    for step in unquote(reference).split("/")[1:]:
        schema = schema.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(schema, dict) else None
    return schema


def _admits_text(schema: Any, root: Any, seen: dict[str, bool]) -> bool:
    """Say whether a value of this schema may be a string: unless something in it speaks against that.

    `root` is what references begin at. `seen` has those that were followed; one that is met again on its own way is no
    evidence against a string.
    """
    if not isinstance(schema, dict):
        return True
    kinds = [schema["type"]] if isinstance(schema.get("type"), str) else schema.get("type")
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(kinds, list) and kinds and "string" not in kinds:
        return False
    if isinstance(values, list) and values and not any(isinstance(value, str) for value in values):
        return False
    for word, enough in (("anyOf", any), ("oneOf", any), ("allOf", all)):
        parts = schema.get(word)
        if isinstance(parts, list) and parts and not enough(_admits_text(part, root, seen) for part in parts):
            return False
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference not in seen:
        seen[reference] = True
        seen[reference] = _admits_text(_referred(reference, root), root, seen)
    return not isinstance(reference, str) or seen[reference]


def _value(text: str, schema: Any, root: Any) -> Any:
    """Type a raw value by its parameter's schema, a part of `root`.

    A value that may be a string is one, to the last space, even if it may be something else too: null where the schema
    says "string or null" is written `None`, as the string is.
    """
    try:
        if _admits_text(schema, root, {}):
            return text
        return _PYTHON_WORDS[text] if text in _PYTHON_WORDS else json.loads(text)
    except (ValueError, RecursionError):
        return text


def typed(raw: dict[str, str], name: str, tools: Tools) -> dict[str, Any]:
    """Return the arguments of a call of tool `name` that were written as raw text."""
    schema = json.loads(tools[name].parameters) if name in tools else {}
    properties = schema.get("properties") if isinstance(schema, dict) else None
    properties = properties if isinstance(properties, dict) else {}
    return {key: _value(text, properties.get(key), schema) for key, text in raw.items()}
