"""Every text of a session, rewritten by a function; whatever does not change stays the same object."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

from sdft_cli.records import Message, Session, ToolSchema
from sdft_cli.redaction.rules import mask

Rewrite = Callable[[str, str], str]
"""(text, name under which it is a value or "") -> text."""


def rewrite_session(session: Session, rewrite: Rewrite) -> Session:
    """Return the session with every text rewritten, or the same object if `rewrite` changed nothing."""
    messages = _each(session.messages, lambda m: _rewrite_message(m, rewrite))
    tools = _each(session.tools, lambda t: _rewrite_tool(t, rewrite))
    metadata = _rewrite_value(session.metadata, "", rewrite)
    if messages is session.messages and tools is session.tools and metadata is session.metadata:
        return session
    return replace(session, messages=messages, tools=tools, metadata=metadata)


def _each(items: tuple[Any, ...], rewrite: Callable[[Any], Any]) -> tuple[Any, ...]:
    new = tuple(rewrite(item) for item in items)
    return items if all(a is b for a, b in zip(items, new, strict=True)) else new


def _rewrite_message(message: Message, rewrite: Rewrite) -> Message:
    content, reasoning = rewrite(message.content, ""), rewrite(message.reasoning, "")
    calls = _each(
        message.tool_calls,
        lambda call: (
            call if (new := _rewrite_json(call.arguments, rewrite)) == call.arguments else replace(call, arguments=new)
        ),
    )
    if content == message.content and reasoning == message.reasoning and calls is message.tool_calls:
        return message
    return replace(message, content=content, reasoning=reasoning, tool_calls=calls)


def _rewrite_tool(tool: ToolSchema, rewrite: Rewrite) -> ToolSchema:
    description, parameters = rewrite(tool.description, ""), _rewrite_json(tool.parameters, rewrite)
    if description == tool.description and parameters == tool.parameters:
        return tool
    return replace(tool, description=description, parameters=parameters)


def _rewrite_value(value: Any, name: str, rewrite: Rewrite) -> Any:
    """Rewrite the strings of a nested value; what does not change stays the same object."""
    if isinstance(value, str):
        new = rewrite(value, _context(name))
        return value if new == value else new
    if isinstance(value, Mapping):
        items = {key: _rewrite_value(item, str(key), rewrite) for key, item in value.items()}
        return value if all(items[key] is value[key] for key in value) else items
    if isinstance(value, (list, tuple)):
        new_items = [_rewrite_value(item, name, rewrite) for item in value]
        return value if all(a is b for a, b in zip(value, new_items, strict=True)) else type(value)(new_items)
    return value


_LITERAL = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
_SENSITIVE = re.compile(r"pass|pwd|secret|token|key|cred|auth", re.IGNORECASE)


def _context(name: str) -> str:
    """Return the name if it may say that its value is a secret; any other name would only defeat the cache."""
    return name if len(name) <= 80 and _SENSITIVE.search(name) else ""


def _rewrite_json(text: str, rewrite: Rewrite) -> str:
    """Rewrite the string literals of a JSON text, keys included; every other byte stays as it was.

    A value is searched together with its key. A changed key can change that, so this repeats until nothing changes.
    """
    while True:
        new = _rewrite_literals(text, rewrite)
        if new == text:
            return text
        text = new


def _rewrite_literals(text: str, rewrite: Rewrite) -> str:
    parts, at = [], 0
    for literal in _literals(text):
        new = rewrite(literal.value, literal.name)
        if new != literal.value:
            parts += [text[at : literal.start], _encoded(new)]
            at = literal.end
    return "".join([*parts, text[at:]]) if parts else text


class _Literal(NamedTuple):
    """The string `value` is written at `text[start:end]`; `name` is its key if it is a value and the key matters."""

    start: int
    end: int
    value: str
    name: str


@lru_cache(4096)  # tools are the same in many sessions, and every session is walked twice
def _literals(text: str) -> tuple[_Literal, ...]:
    literals, at, name = [], 0, ""
    for match in _LITERAL.finditer(text):
        between = text[at : match.start()]
        if (at and "," in between) or "{" in between or "}" in between:
            name = ""
        value = _decoded(match[0])
        at = match.end()
        is_key = text[at : at + 8].lstrip()[:1] == ":"
        literals.append(_Literal(match.start(), at, value, "" if is_key else _context(name)))
        if is_key:
            name = mask(value.encode("utf-8", "replace")).decode("utf-8", "replace")
    return tuple(literals)


def _decoded(literal: str) -> str:
    """Decode a JSON string; what is no valid one (a broken call) is searched as it stands."""
    if "\\" not in literal:
        return literal[1:-1]
    try:
        value = json.loads(literal, strict=False)
    except ValueError:
        return literal[1:-1]
    return str(value)


def _encoded(value: str) -> str:
    """Encode a string as JSON; lone surrogates stay escaped, because UTF-8 cannot hold them."""
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value, ensure_ascii=False))
