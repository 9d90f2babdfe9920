"""Values as Python or JSON writes them, with the strings of a syntax: lists, mappings, numbers, words."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

String = Callable[[str, int], "tuple[str, int] | None"]
"""Reads the string at a position: its text and where it ends; None if none begins there."""

_WORDS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_SCALAR = re.compile(r"(-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?)(?![\w.])|([A-Za-z]+)(?!\w)")
_SPACE = re.compile(r"\s*")
_PIECE = re.compile(r"[^\\'\"]+|\\(?:u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|U[0-9a-fA-F]{8}|[^uxU])|['\"]", re.DOTALL)
_ESCAPES = dict(zip("nrtbfavn0\\'\"/", "\n\r\t\b\f\a\v\n\0\\'\"/", strict=True))
_SURROGATES = re.compile("[\ud800-\udbff][\udc00-\udfff]")


class TornError(Exception):
    """The text ends inside a value."""


class UnreadableError(Exception):
    """What stands there is no value."""


def skip(text: str, position: int) -> int:
    """Return where white space that begins at a position ends.

    Raises:
        TornError: the text ends there.
    """
    position = _SPACE.match(text, position).end()  # type: ignore[union-attr]
    if position == len(text):
        raise TornError
    return position


def escaped_string(text: str, start: int) -> tuple[str, int] | None:
    """Read a string in either kind of quotes, with the escapes of JSON and of Python.

    Raises:
        TornError: the text ends inside it.
        UnreadableError: it has an escape that neither knows.
    """
    quote = text[start : start + 1]
    if quote not in {"'", '"'} or not quote:
        return None
    found: list[str] = []
    position = start + 1
    while piece := _PIECE.match(text, position):
        position = piece.end()
        if piece[0] == quote:
            value = "".join(found)
            return _SURROGATES.sub(lambda m: m[0].encode("utf-16", "surrogatepass").decode("utf-16"), value), position
        found.append(_unescaped(piece[0]) if piece[0][0] == "\\" else piece[0])
    if len(text) - position > 9:
        raise UnreadableError
    raise TornError


def _unescaped(escape: str) -> str:
    kind = escape[1]
    if kind in "uxU":
        code = int(escape[2:], 16)
        if code > 0x10FFFF:
            raise UnreadableError
        return chr(code)
    if kind not in _ESCAPES:
        raise UnreadableError
    return _ESCAPES[kind]


def read_value(text: str, start: int, string: String, bare_keys: bool = False) -> tuple[Any, int]:
    """Read the value at a position, white space before it allowed; return it and where it ends.

    Args:
        string: reads the strings.
        bare_keys: keys of mappings may stand without quotes, up to their colon.

    Raises:
        TornError: the text ends inside it.
        UnreadableError: it is none.
    """
    position = skip(text, start)
    if text[position] == "[":
        return _read_list(text, position, string, bare_keys)
    if text[position] == "{":
        return read_mapping(text, position, string, bare_keys)
    if found := string(text, position):
        return found
    scalar = _SCALAR.match(text, position)
    if scalar is None or (scalar[2] and scalar[2] not in _WORDS):
        if re.compile(r"[\w.+-]*").fullmatch(text, position):
            raise TornError
        raise UnreadableError
    if scalar.end() == len(text):
        raise TornError
    return _WORDS[scalar[2]] if scalar[2] else _number(scalar[1]), scalar.end()


def _number(text: str) -> int | float:
    try:
        return int(text) if re.fullmatch(r"-?\d+", text) else float(text)
    except ValueError as error:  # more digits than Python converts
        raise UnreadableError from error


def _read_list(text: str, start: int, string: String, bare_keys: bool) -> tuple[list[Any], int]:
    found, position = list[Any](), skip(text, start + 1)
    while text[position] != "]":
        value, position = read_value(text, position, string, bare_keys)
        found.append(value)
        position = _next(text, position, "]")
    return found, position + 1


def read_mapping(text: str, start: int, string: String, bare_keys: bool) -> tuple[dict[str, Any], int]:
    """Read the mapping whose brace stands at a position, as `read_value` does; no key may stand in it twice."""
    found, position = dict[str, Any](), skip(text, start + 1)
    while text[position] != "}":
        key, position = _read_key(text, position, string, bare_keys)
        value, position = read_value(text, position, string, bare_keys)
        if key in found:
            raise UnreadableError
        found[key] = value
        position = _next(text, position, "}")
    return found, position + 1


def _read_key(text: str, start: int, string: String, bare_keys: bool) -> tuple[str, int]:
    quoted = string(text, start)
    if quoted is None and not bare_keys:
        raise UnreadableError
    colon = skip(text, quoted[1]) if quoted else text.find(":", start)
    if colon < 0:
        raise TornError
    if text[colon] != ":":
        raise UnreadableError
    return (quoted[0] if quoted else text[start:colon]), colon + 1


def _next(text: str, start: int, end: str) -> int:
    """Return where the next item begins, or where the end stands."""
    position = skip(text, start)
    if text[position] == ",":
        return skip(text, position + 1)
    if text[position] != end:
        raise UnreadableError
    return position
