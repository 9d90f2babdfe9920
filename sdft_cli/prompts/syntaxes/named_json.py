"""Calls as a name, a separator and a JSON object: DeepSeek, Kimi, Mistral with `[ARGS]`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

from sdft_cli.prompts.syntaxes.json_reader import read_json
from sdft_cli.prompts.syntaxes.turns import Marks, ParsedCall, ParsedTurn, Syntax, Tools, TurnSoFar, walk
from sdft_cli.records import ToolSchema


def _read(
    text: str,
    start: int,
    tools: Tools,
    turn: TurnSoFar,
    marks: Marks,
    head: re.Pattern[str],
    tail: re.Pattern[str],
    begun: re.Pattern[str],
) -> int:
    """Read the call behind an opening mark: `head` matches up to its JSON, `tail` behind it, `begun` its name."""
    name = head.match(text, start)
    if name is None:
        return marks.give_up(text, start, turn, "no name", begun, (start if marks.closing else len(text), start))
    json_at = read_json(text, name.end())
    closed = tail.match(text, json_at.end) if json_at.state == "whole" else None
    if closed is None:
        seen = (json_at.end, start if json_at.state == "bad" else json_at.end)
        return marks.give_up(text, start, turn, "not JSON", begun, seen)
    is_object = isinstance(json_at.value, dict)
    outcome = ParsedCall(name[1], json_at.value) if is_object else "arguments are not an object"
    turn.add(outcome, text[start : json_at.end])
    return closed.end()


def _syntax(name: str, marks: Marks, head: str, tail: str, begun: str = "") -> Syntax:
    def parse(text: str, tools: Sequence[ToolSchema]) -> ParsedTurn:
        return walk(text, tools, marks, read)

    read = partial(_read, marks=marks, head=re.compile(head), tail=re.compile(tail), begun=re.compile(begun or head))
    return Syntax(name, parse)


_DEEPSEEK_MARKS = Marks(
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    dropped=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
)
DEEPSEEK_V3 = _syntax(
    "DeepSeek V3 and R1",
    _DEEPSEEK_MARKS,
    r"\s*function<｜tool▁sep｜>([^\n<]+)\n```json\n",
    r"\s*```\s*<｜tool▁call▁end｜>",
    r"\s*function<｜tool▁sep｜>([^\n<]+)\n",
)
DEEPSEEK_V31 = _syntax("DeepSeek V3.1", _DEEPSEEK_MARKS, r"\s*([^\n<]+)<｜tool▁sep｜>", r"\s*<｜tool▁call▁end｜>")
_KIMI_MARKS = Marks(
    "<|tool_call_begin|>",
    "<|tool_call_end|>",
    dropped=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
)
KIMI = _syntax(
    "Kimi K2",
    _KIMI_MARKS,
    r"\s*(?:functions\.)?([^\n<]+?):\d+\s*<\|tool_call_argument_begin\|>",
    r"\s*<\|tool_call_end\|>",
)
MISTRAL_ARGS = _syntax(
    "Mistral, a name and its arguments",
    Marks("[TOOL_CALLS]", "", ("[THINK]", "[/THINK]")),
    r"\s*([^\s\[\]{}]+?)\s*(?:\[CALL_ID\][^\[\]]*)?(?:\[ARGS\])\s*",
    "",
)
