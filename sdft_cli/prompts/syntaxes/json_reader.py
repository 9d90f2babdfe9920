"""JSON inside a text: where it ends, whether the text ends inside it, and the call that an object is."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from sdft_cli.prompts.syntaxes.turns import ParsedCall

_TORN = re.compile(r"[\\\w.+-]*\s*")
"""What is left of JSON where the text ends inside a number, a word or an escape, or between them."""
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True, slots=True)
class JsonAt:
    """What stands at a position. `end`: of a whole value, behind it; of others, how far the text was read.

    `torn`: the text ends inside the value. `bad`: it is no JSON, or has a key twice, or a number that JSON has not.
    """

    state: Literal["whole", "torn", "bad"]
    end: int
    value: Any = None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise ValueError("a key twice")
    return mapping


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_JSON = json.JSONDecoder(object_pairs_hook=_distinct, parse_constant=_no_constant)


def skip_space(text: str, position: int) -> int:
    """Return where white space that begins at a position ends."""
    return _SPACE.match(text, position).end()  # type: ignore[union-attr]


def read_json(text: str, start: int) -> JsonAt:
    """Read the JSON value at a position, white space before it allowed."""
    try:
        value, end = _JSON.raw_decode(text, skip_space(text, start))
    except json.JSONDecodeError as error:
        if error.msg.startswith("Unterminated string") or _TORN.fullmatch(text, error.pos):
            return JsonAt("torn", len(text))
        return JsonAt("bad", error.pos)
    except (ValueError, RecursionError):
        return JsonAt("bad", start)
    return JsonAt("whole", end, value)


def call_of(value: Any, name: str = "name", arguments: tuple[str, ...] = ("arguments",)) -> ParsedCall | str:
    """Return the call that an object is, with its name and its arguments under these keys, or what is wrong with it."""
    if not isinstance(value, dict) or not isinstance(value.get(name), str):
        return "no name"
    found: Any = next((value[key] for key in arguments if key in value), {})
    return ParsedCall(value[name], found) if isinstance(found, dict) else "arguments are not an object"
