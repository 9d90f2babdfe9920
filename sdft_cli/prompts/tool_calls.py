"""Tool calls out of text: Hermes JSON (`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`) and Qwen3.5 XML
(`<tool_call><function=NAME><parameter=KEY>value</parameter></function></tool_call>`).

Values are kept raw, to the last space; XML values are typed by the tool's schema and by nothing else. A call that is
not closed is not a call: it is reported as unterminated. A call inside a think block is not a call.

Not every call can be written in XML: nothing in it is escaped. `comes_back` says whether a rendered one can be read.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from sdft_cli.records import Message, ToolSchema

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_MARK = re.compile(r"<think>|</think>|<tool_call>")
_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>\n?(.*)</function>\s*", re.DOTALL)
_BEGUN = re.compile(r'\s*(?:<function=([^>\n]+)>|\{\s*"name"\s*:\s*"([^"\\]+)")')
# A closing tag inside a value closes nothing unless another parameter, or the end, comes behind it.
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>\s*(?=<parameter=|\Z)", re.DOTALL)
_TWO_PARAMETERS = re.compile(r"</parameter>.*<parameter=", re.DOTALL)
_TORN = re.compile(r"[\\\w.+-]*\s*")
"""What is left of JSON where the text ends inside a number, a word or an escape, or between them."""
_PYTHON_WORDS = {"True": True, "False": False, "None": None}
"""How a template writes booleans and null outside strings, objects and lists: with Python's `str`."""


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """A call that parses: its tool's name and its arguments."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ParsedTurn:
    """An assistant turn taken apart.

    `errors` has one entry per `<tool_call>` that is no call: `unterminated`, `not JSON`, `no name`, ... `failed` has
    the raw text of each of them, without its tags. `begun` is the tool that the turn's last call names, if that call is
    unterminated and got as far as the name. `thought` is what think blocks hold, as it was written.
    """

    content: str
    calls: tuple[ParsedCall, ...]
    errors: tuple[str, ...]
    begun: str | None = None
    failed: tuple[str, ...] = ()
    thought: str = ""

    @property
    def well_formed(self) -> bool:
        """At least one call, and every call that was begun parses."""
        return bool(self.calls) and not self.errors


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


def _xml_value(text: str, schema: Any, root: Any) -> Any:
    """Type a raw XML value by its parameter's schema, a part of `root`.

    A value that may be a string is one, to the last space, even if it may be something else too: null where the schema
    says "string or null" is written `None`, as the string is.
    """
    try:
        if _admits_text(schema, root, {}):
            return text
        return _PYTHON_WORDS[text] if text in _PYTHON_WORDS else json.loads(text)
    except (ValueError, RecursionError):
        return text


def _parse_xml(body: str, tools: dict[str, ToolSchema]) -> ParsedCall | str:
    match = _FUNCTION.fullmatch(body)
    if match is None:
        return "not a function element"
    name, inner = match[1], match[2]
    schema = json.loads(tools[name].parameters) if name in tools else {}
    properties = schema.get("properties") if isinstance(schema, dict) else None
    properties = properties if isinstance(properties, dict) else {}
    arguments: dict[str, Any] = {}
    position = 0
    for parameter in _PARAMETER.finditer(inner):
        if inner[position : parameter.start()].strip():
            return "text between parameters"
        if _TWO_PARAMETERS.search(parameter[2]):
            return "text between parameters"  # or a value that looks like it: nobody can tell
        if parameter[1] in arguments:
            return f"parameter {parameter[1]} twice"
        arguments[parameter[1]] = _xml_value(parameter[2], properties.get(parameter[1]), schema)
        position = parameter.end()
    return "text after parameters" if inner[position:].strip() else ParsedCall(name, arguments)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise ValueError("a key twice")
    return mapping


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_JSON = json.JSONDecoder(object_pairs_hook=_distinct, parse_constant=_no_constant)


def _call_of(value: Any) -> ParsedCall | str:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return "no name"
    arguments = value.get("arguments", {})
    return ParsedCall(value["name"], arguments) if isinstance(arguments, dict) else "arguments are not an object"


@dataclass(slots=True)
class _TurnSoFar:
    """What was found up to a position of the text."""

    content: list[str] = field(default_factory=list)
    calls: list[ParsedCall] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    begun: str | None = None
    failed: list[str] = field(default_factory=list)
    thought: list[str] = field(default_factory=list)

    def add(self, outcome: ParsedCall | str, raw: str, begun: str | None = None) -> None:
        self.begun = begun
        if isinstance(outcome, ParsedCall):
            self.calls.append(outcome)
        else:
            self.errors.append(outcome)
            self.failed.append(raw)


def _read_call(text: str, start: int, tools: dict[str, ToolSchema], turn: _TurnSoFar) -> int:
    """Read the call whose opening tag ends at `start`; return where the text goes on."""
    json_start = re.compile(r"\s*").match(text, start).end()  # type: ignore[union-attr]
    closes = opens = start
    try:  # a string of JSON may hold tags; decoding it finds the call's true end
        value, closes = _JSON.raw_decode(text, json_start)
        opens = closes
        closed = re.compile(rf"\s*{_CLOSE}").match(text, closes)
        if closed:
            turn.add(_call_of(value), text[start:closes])
            return closed.end()
    except json.JSONDecodeError as error:
        closes = error.pos
        if error.msg.startswith("Unterminated string") or _TORN.fullmatch(text, error.pos):
            closes = opens = len(text)  # all of the text is in this call
    except (ValueError, RecursionError):
        pass
    close, again = text.find(_CLOSE, closes), text.find(_OPEN, opens)
    if close < 0 or 0 <= again < close:
        stop = len(text) if again < 0 else again
        name = _BEGUN.match(text, start, stop)
        turn.add("unterminated", text[start:stop], (name[1] or name[2]) if name else None)
        return stop
    body = text[start:close]
    turn.add(_parse_xml(body, tools) if body.lstrip().startswith("<function=") else "not JSON", body)
    return close + len(_CLOSE)


def parse_turn(text: str, tools: Sequence[ToolSchema] = ()) -> ParsedTurn:
    """Take an assistant turn apart into prose, calls and failed calls."""
    by_name = {tool.name: tool for tool in tools}
    turn, position = _TurnSoFar(), 0
    while mark := _MARK.search(text, position):
        turn.content.append(text[position : mark.start()])
        if mark[0] == "<think>":
            end = text.find("</think>", mark.end())
            turn.thought.append(text[mark.end() : end if end >= 0 else None])
            position = len(text) if end < 0 else end + len("</think>")
        elif mark[0] == "</think>":  # the prompt began the block: all so far was thought
            turn, position = _TurnSoFar(thought=[text[: mark.start()]]), mark.end()
        else:
            position = _read_call(text, mark.end(), by_name, turn)
    turn.content.append(text[position:])
    return ParsedTurn(
        content="".join(turn.content).strip(),
        calls=tuple(turn.calls),
        errors=tuple(turn.errors),
        begun=turn.begun,
        failed=tuple(turn.failed),
        thought="\n".join(turn.thought),
    )


def canonical(name: str, arguments: dict[str, Any]) -> str:
    """Return a call as text that is equal for equal calls: keys in any order, 1 and 1.0 alike, true and 1 not."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [plain(inner) for inner in value]
        return int(value) if isinstance(value, float) and value.is_integer() else value

    return json.dumps([name, plain(arguments)], sort_keys=True)


def comes_back(text: str, message: Message, tools: Sequence[ToolSchema]) -> bool:
    """Say whether a rendered assistant turn reads as what was rendered: its prose, its calls in their order, no more.

    False: the model's syntax cannot represent the turn, e.g. prose that spells a tag, an XML value with a closing tag
    in it, or a number where the schema allows a text too. No answer can equal such a turn. White space around the
    prose does not count: chat templates trim it.
    """
    turn = parse_turn(text, tools)
    expected = [canonical(call.name, call.parsed_arguments()) for call in message.tool_calls]
    calls = [canonical(call.name, call.arguments) for call in turn.calls]
    return not turn.errors and calls == expected and turn.content == message.content.strip()


def same_calls(answer: ParsedTurn, message: Message) -> bool:
    """Say whether an answer makes the same calls with the same arguments; parallel calls are unordered."""
    expected = Counter(canonical(call.name, call.parsed_arguments()) for call in message.tool_calls)
    return answer.well_formed and Counter(canonical(c.name, c.arguments) for c in answer.calls) == expected
