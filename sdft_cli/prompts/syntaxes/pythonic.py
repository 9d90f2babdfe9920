"""Calls as Python writes them, `name(key=value, ...)`: Llama 3 and 4, LFM2, OLMo 3.

Some templates escape what a string holds, as Python would; others only put quotes around it. So there are two readers
of each: in the second, a string ends at a quote behind which another argument or the end of the call stands.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from sdft_cli.prompts.syntaxes.literals import String, TornError, UnreadableError, escaped_string, read_value, skip
from sdft_cli.prompts.syntaxes.turns import Found, Marks, ParsedCall, ParsedTurn, Syntax, Tools, TurnSoFar, walk
from sdft_cli.records import ToolSchema

_NAME = re.compile(r"([^\s()\[\]{},='\"<>]+)\(")
_BEGUN = re.compile(r"[\s,\[]*([^\s()\[\]{},='\"<>]+)\(")
_KEY = re.compile(r"([^=(),'\"\n]*[^=(),'\"\s])\s*=")
_RAW_END = {
    quote: re.compile(rf"{quote}(?=\s*,\s*[^\s=(),'\"]+\s*=|\s*\)\s*(?:,\s*[^\s=(),'\"]+\(|\]|\n|<|\Z))")
    for quote in ("'", '"')
}


def raw_string(text: str, start: int) -> tuple[str, int] | None:
    """Read an argument that is text in quotes with nothing in it escaped.

    Raises:
        TornError: nothing behind it ends it.
    """
    ending = _RAW_END.get(text[start : start + 1])
    if ending is None:
        return None
    end = ending.search(text, start + 1)
    if end is None:
        raise TornError
    return text[start + 1 : end.start()], end.end()


def read_call(text: str, start: int, string: String) -> tuple[ParsedCall, int]:
    """Read the call at a position; `string` reads arguments that are strings, inside lists they are always escaped.

    Raises:
        TornError: the text ends inside it.
        UnreadableError: it is none.
    """
    name = _NAME.match(text, start)
    if name is None:
        if re.compile(r"[^\s()\[\]{},='\"<>]*").fullmatch(text, start):
            raise TornError
        raise UnreadableError
    arguments, position = dict[str, Any](), skip(text, name.end())
    while text[position] != ")":
        key = _KEY.match(text, position)
        if key is None:
            if re.compile(r"[^=(),'\"\n]*").fullmatch(text, position):
                raise TornError
            raise UnreadableError
        if key[1] in arguments:
            raise UnreadableError
        arguments[key[1]], position = string(text, skip(text, key.end())) or read_value(text, key.end(), escaped_string)
        position = skip(text, position)
        if text[position] == ",":
            position = skip(text, position + 1)
        elif text[position] != ")":
            raise UnreadableError
    return ParsedCall(name[1], arguments), position + 1


def _read(text: str, start: int, tools: Tools, turn: TurnSoFar, marks: Marks, string: String, brackets: bool) -> int:
    """Read the calls behind an opening mark, in brackets or a line each; return where the text goes on."""
    position, found, end = start, list[Found](), "]" if brackets else marks.closing
    try:
        position = skip(text, position)
        if brackets:
            if text[position] != "[":
                return marks.give_up(text, start, turn, "not a list", _BEGUN)
            position = skip(text, position + 1)
        while not text.startswith(end, position):
            call, behind = read_call(text, position, string)
            following = skip(text, behind)  # where the text ends here, the call may not be the last
            if brackets and text[following] not in ",]":
                raise UnreadableError
            found.append((call, position, behind))
            position = following + (brackets and text[following] == ",")
            position = skip(text, position)
    except TornError:
        turn.add_all(text, found)
        return marks.give_up(text, position, turn, "not calls", _BEGUN, (len(text), len(text)))
    except (UnreadableError, RecursionError):
        turn.add_all(text, found)
        return marks.give_up(text, position, turn, "not calls", _BEGUN)
    return marks.close_list(text, position + len(end) * brackets, found, turn, _BEGUN)


def _syntax(name: str, marks: Marks, string: String, brackets: bool = True) -> Syntax:
    def parse(text: str, tools: Sequence[ToolSchema]) -> ParsedTurn:
        return walk(text, tools, marks, partial(_read, marks=marks, string=string, brackets=brackets))

    return Syntax(name, parse)


_WHOLE_TURN = re.compile(r"\s*(?=\[\s*[^\s()\[\]{},='\"<>]+\()")
_LLAMA_MARKS = Marks("<|python_start|>", "<|python_end|>")
_BARE = Marks("<|python_start|>", "")


def _llama(name: str, string: String) -> Syntax:
    """Calls between Llama 4's marks, or a turn that is nothing but a list of calls."""

    def parse(text: str, tools: Sequence[ToolSchema]) -> ParsedTurn:
        if not _WHOLE_TURN.match(text):
            read = partial(_read, marks=_LLAMA_MARKS, string=string, brackets=True)
            return walk(text, tools, _LLAMA_MARKS, read)
        turn = TurnSoFar()
        position = _read(text, 0, {}, turn, _BARE, string, True)
        turn.say(text, position, len(text))
        return turn.done()

    return Syntax(name, parse)


_LFM2_MARKS = Marks("<|tool_call_start|>", "<|tool_call_end|>")
_OLMO_MARKS = Marks("<function_calls>", "</function_calls>")
LLAMA_PYTHONIC = _llama("Llama pythonic", escaped_string)
LLAMA_PYTHONIC_RAW = _llama("Llama pythonic, nothing escaped", raw_string)
LFM2 = _syntax("LFM2", _LFM2_MARKS, escaped_string)
LFM2_RAW = _syntax("LFM2, nothing escaped", _LFM2_MARKS, raw_string)
OLMO_3 = _syntax("OLMo 3", _OLMO_MARKS, escaped_string, brackets=False)
OLMO_3_RAW = _syntax("OLMo 3, nothing escaped", _OLMO_MARKS, raw_string, brackets=False)
