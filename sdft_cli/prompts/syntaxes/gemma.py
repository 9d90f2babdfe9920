"""Gemma 4 (`<|tool_call>call:NAME{key:<|"|>text<|"|>,...}<tool_call|>`) and FunctionGemma, which has other marks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

from sdft_cli.prompts.syntaxes.literals import TornError, UnreadableError, read_mapping
from sdft_cli.prompts.syntaxes.turns import Marks, ParsedCall, ParsedTurn, Syntax, Tools, TurnSoFar, walk
from sdft_cli.records import ToolSchema

_HEAD = re.compile(r"\s*call:([^{}\n]+)(?=\{)")


def _string(text: str, start: int, quote: str) -> tuple[str, int] | None:
    """Read a string between two quotes, in which nothing is escaped."""
    if not text.startswith(quote, start):
        if quote.startswith(text[start:]):
            raise TornError
        return None
    end = text.find(quote, start + len(quote))
    if end < 0:
        raise TornError
    return text[start + len(quote) : end], end + len(quote)


def _read(text: str, start: int, tools: Tools, turn: TurnSoFar, marks: Marks, quote: str) -> int:
    """Read the call whose opening mark ends at `start`; return where the text goes on."""
    head = _HEAD.match(text, start)
    if head is None:
        return marks.give_up(text, start, turn, "no name", _HEAD)
    try:
        arguments, end = read_mapping(text, head.end(), partial(_string, quote=quote), bare_keys=True)
    except TornError:
        return marks.give_up(text, start, turn, "not arguments", _HEAD, (len(text), len(text)))
    except (UnreadableError, RecursionError):
        return marks.give_up(text, start, turn, "not arguments", _HEAD)
    return marks.close_list(text, end, [(ParsedCall(head[1], arguments), start, end)], turn, _HEAD)


def _syntax(name: str, marks: Marks, quote: str) -> Syntax:
    def parse(text: str, tools: Sequence[ToolSchema]) -> ParsedTurn:
        return walk(text, tools, marks, partial(_read, marks=marks, quote=quote))

    return Syntax(name, parse)


_ENDS = ("<|tool_response>", "<turn|>")
"""What may follow the calls of a turn, as its end."""
GEMMA_4 = _syntax("Gemma 4", Marks("<|tool_call>", "<tool_call|>", ("<|channel>thought", "<channel|>"), _ENDS), '<|"|>')
FUNCTION_GEMMA = _syntax(
    "FunctionGemma",
    Marks("<start_function_call>", "<end_function_call>", dropped=("<start_function_response>", "<end_of_turn>")),
    "<escape>",
)
