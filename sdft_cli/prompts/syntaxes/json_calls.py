"""Calls as JSON that holds their names too, behind a mark or as the whole turn.

Lists: Mistral (`[TOOL_CALLS][{"name": ..., "arguments": {...}}]`), Command R, Granite, Phi-4-mini, Nemotron. Objects
that are the whole turn: Llama 3 (`{"name": ..., "parameters": {...}}`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from sdft_cli.prompts.syntaxes.json_reader import call_of, read_json, skip_space
from sdft_cli.prompts.syntaxes.turns import Found, Marks, ParsedTurn, Syntax, Tools, TurnSoFar, walk
from sdft_cli.records import ToolSchema


@dataclass(frozen=True, slots=True)
class Keys:
    """Under which keys an object has a call's name and arguments, and what matches its beginning and its name."""

    name: str
    arguments: tuple[str, ...]
    begun: re.Pattern[str]


_NAME = Keys("name", ("arguments",), re.compile(r'[\s,\[]*\{[^{}]*?"name"\s*:\s*"([^"\\]+)"'))
_TOOL_NAME = Keys("tool_name", ("parameters",), re.compile(r'[\s,\[]*\{[^{}]*?"tool_name"\s*:\s*"([^"\\]+)"'))


def _read_list(text: str, start: int, tools: Tools, turn: TurnSoFar, marks: Marks, keys: Keys) -> int:
    """Read the list of calls behind an opening mark, call by call; return where the text goes on."""
    position = skip_space(text, start)
    if not text.startswith("[", position):
        return marks.give_up(text, start, turn, "not a list", keys.begun, (position, position))
    position, found = skip_space(text, position + 1), list[Found]()
    while not text.startswith("]", position):
        json_at = read_json(text, position)
        behind = skip_space(text, json_at.end)
        if json_at.state != "whole" or text[behind : behind + 1] not in {",", "]"}:
            turn.add_all(text, found)
            closes = len(text) if behind == len(text) else json_at.end
            opens = position if json_at.state == "bad" else closes
            return marks.give_up(text, position, turn, "not JSON", keys.begun, (closes, opens))
        found.append((call_of(json_at.value, keys.name, keys.arguments), position, json_at.end))
        position = skip_space(text, behind + 1) if text[behind] == "," else behind
    return marks.close_list(text, position + 1, found, turn, keys.begun)


def _list_syntax(name: str, marks: Marks, keys: Keys = _NAME) -> Syntax:
    def parse(text: str, tools: Sequence[ToolSchema]) -> ParsedTurn:
        return walk(text, tools, marks, partial(_read_list, marks=marks, keys=keys))

    return Syntax(name, parse)


_COMMAND_R_MARKS = Marks(
    "<|START_ACTION|>",
    "<|END_ACTION|>",
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"),
)
MISTRAL_LIST = _list_syntax("Mistral, a list of calls", Marks("[TOOL_CALLS]", "", ("[THINK]", "[/THINK]")))
COMMAND_R = _list_syntax("Command R", _COMMAND_R_MARKS, _TOOL_NAME)
GRANITE = _list_syntax("Granite", Marks("<|tool_call|>", ""))
PHI_4 = _list_syntax("Phi-4-mini", Marks("<|tool_call|>", "<|/tool_call|>"))
NEMOTRON = _list_syntax("Nemotron", Marks("<TOOLCALL>", "</TOOLCALL>"))

_LLAMA = Keys(
    "name",
    ("parameters", "arguments"),
    re.compile(r'\s*\{(?:\s*"type"\s*:\s*"function"\s*,)?\s*"name"\s*:\s*"([^"\\]+)"'),
)
_PYTHON_TAG = "<|python_tag|>"
_BETWEEN = re.compile(r"\s*[;,]?\s*(?=\{)")


def _parse_llama(text: str, tools: Sequence[ToolSchema]) -> ParsedTurn:
    """Take a turn apart that is JSON objects, or prose with such objects behind a mark.

    A turn that is an object without a call's keys is prose, as is one that only begins like an object.
    """
    marks, turn = Marks(_PYTHON_TAG, ""), TurnSoFar()
    mark = text.find(_PYTHON_TAG)
    position = skip_space(text, 0) if mark < 0 else mark + len(_PYTHON_TAG)
    turn.say(text, 0, max(mark, 0))
    if mark < 0:
        first = read_json(text, position)
        is_call = isinstance(first.value, dict) and {"name", "parameters"} <= first.value.keys()
        if not (text.startswith("{", position) and (is_call or first.state == "torn" or _LLAMA.begun.match(text))):
            turn.say(text, 0, len(text))
            return turn.done()
    while position < len(text):
        json_at = read_json(text, position)
        if json_at.state != "whole":
            seen = (json_at.end, json_at.end)
            position = marks.give_up(text, position, turn, "not JSON", _LLAMA.begun, seen)
            break
        turn.add(call_of(json_at.value, _LLAMA.name, _LLAMA.arguments), text[position : json_at.end])
        following = _BETWEEN.match(text, json_at.end)
        position = following.end() if following else json_at.end
        if not following:
            break
    turn.say(text, position, len(text))
    return turn.done()


LLAMA_JSON = Syntax("Llama 3 JSON", _parse_llama)
