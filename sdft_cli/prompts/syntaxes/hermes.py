"""Hermes JSON: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` (Hermes, Qwen2 to Qwen3, SmolLM)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

from sdft_cli.prompts.syntaxes.elements import FUNCTION, read_element
from sdft_cli.prompts.syntaxes.json_reader import call_of, read_json, skip_space
from sdft_cli.prompts.syntaxes.turns import Marks, ParsedTurn, Syntax, Tools, TurnSoFar, walk
from sdft_cli.records import ToolSchema

_MARKS = Marks("<tool_call>", "</tool_call>")
_BEGUN = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\]+)"')


def _read(text: str, start: int, tools: Tools, turn: TurnSoFar) -> int:
    """Read the call whose opening tag ends at `start`; return where the text goes on."""
    json_at = read_json(text, start)  # a string of JSON may hold tags; decoding it finds the call's true end
    behind = skip_space(text, json_at.end)
    if json_at.state == "whole" and text.startswith(_MARKS.closing, behind):
        turn.add(call_of(json_at.value), text[start : json_at.end])
        return behind + len(_MARKS.closing)
    opens = start if json_at.state == "bad" else json_at.end
    return _MARKS.give_up(text, start, turn, "not JSON", _BEGUN, (json_at.end, opens))


def _read_both(text: str, start: int, tools: Tools, turn: TurnSoFar) -> int:
    """Read JSON or the elements of Qwen XML."""
    if text.startswith("<function=", skip_space(text, start)):
        return read_element(text, start, tools, turn, _MARKS, FUNCTION)
    return _read(text, start, tools, turn)


def _parse(text: str, tools: Sequence[ToolSchema], both: bool) -> ParsedTurn:
    return walk(text, tools, _MARKS, _read_both if both else _read)


HERMES = Syntax("Hermes JSON", partial(_parse, both=False))
HERMES_OR_QWEN = Syntax("Hermes JSON or Qwen XML", partial(_parse, both=True))
"""What reads a text whose model is not known."""
