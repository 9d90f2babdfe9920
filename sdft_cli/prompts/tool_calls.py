"""Tool calls out of text: Hermes JSON (`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`) and Qwen3.5 XML
(`<tool_call><function=NAME><parameter=KEY>value</parameter></function></tool_call>`).

Values are kept raw; XML values are typed by the tool's schema and by nothing else. A call that is not closed is not a
call: it is reported as unterminated. A call inside a think block is not a call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sdft_cli.records import ToolSchema

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_THINK = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>\n?(.*?)</function>\s*", re.DOTALL)
_BEGUN = re.compile(r'\s*(?:<function=([^>\n]+)>|\{\s*"name"\s*:\s*"([^"\\]+)")')
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """A call that parses: its tool's name and its arguments."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ParsedTurn:
    """An assistant turn taken apart.

    `errors` has one entry per `<tool_call>` that is no call: `unterminated`, `not JSON`, `no name`, ...
    `begun` is the tool that the turn's last call names, if that call is unterminated and got as far as the name.
    """

    content: str
    calls: tuple[ParsedCall, ...]
    errors: tuple[str, ...]
    begun: str | None = None

    @property
    def well_formed(self) -> bool:
        """At least one call, and every call that was begun parses."""
        return bool(self.calls) and not self.errors


def _xml_value(text: str, schema: Any) -> Any:
    """Type a raw XML value by its parameter's schema; a string stays as it is, to the last space."""
    kinds = schema.get("type") if isinstance(schema, dict) else None
    kinds = [kinds] if isinstance(kinds, str) else kinds or ["string"]
    if "string" in kinds:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _parse_xml(body: str, tools: dict[str, ToolSchema]) -> ParsedCall | str:
    match = _FUNCTION.fullmatch(body)
    if match is None:
        return "not a function element"
    name, inner = match[1], match[2]
    properties = json.loads(tools[name].parameters).get("properties", {}) if name in tools else {}
    arguments: dict[str, Any] = {}
    position = 0
    for parameter in _PARAMETER.finditer(inner):
        if inner[position : parameter.start()].strip():
            return "text between parameters"
        if parameter[1] in arguments:
            return f"parameter {parameter[1]} twice"
        arguments[parameter[1]] = _xml_value(parameter[2], properties.get(parameter[1]))
        position = parameter.end()
    return "text after parameters" if inner[position:].strip() else ParsedCall(name, arguments)


def _parse_json(body: str) -> ParsedCall | str:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return "not JSON"
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return "no name"
    arguments = value.get("arguments", {})
    return ParsedCall(value["name"], arguments) if isinstance(arguments, dict) else "arguments are not an object"


def parse_turn(text: str, tools: Sequence[ToolSchema] = ()) -> ParsedTurn:
    """Take an assistant turn apart into prose, calls and failed calls."""
    by_name = {tool.name: tool for tool in tools}
    visible = _THINK.sub("", text)
    content: list[str] = []
    calls: list[ParsedCall] = []
    errors: list[str] = []
    begun: str | None = None
    first, *rest = visible.split(_OPEN)
    content.append(first)
    for part in rest:
        begun = None
        body, closed, after = part.partition(_CLOSE)
        content.append(after)
        if not closed:
            errors.append("unterminated")
            name = _BEGUN.match(body)
            begun = (name[1] or name[2]) if name else None
            continue
        found = _parse_xml(body, by_name) if body.lstrip().startswith("<function=") else _parse_json(body)
        if isinstance(found, ParsedCall):
            calls.append(found)
        else:
            errors.append(found)
    return ParsedTurn("".join(content).strip(), tuple(calls), tuple(errors), begun)
