"""Harmony (gpt-oss): a turn is messages, each with a header that says its channel and to whom it goes.

`<|channel|>analysis<|message|>thought<|end|><|start|>assistant<|channel|>commentary to=functions.NAME
<|constrain|>json<|message|>{...}<|call|>`. The recipient may stand before the channel, too. The prompt ends behind
`<|start|>assistant`, so the first message begins there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from sdft_cli.prompts.syntaxes.json_reader import read_json
from sdft_cli.prompts.syntaxes.turns import Marks, ParsedCall, ParsedTurn, Syntax, TurnSoFar
from sdft_cli.records import ToolSchema

_HEADER = re.compile(
    r"\s*(?:<\|start\|>assistant)?((?:(?!<\|message\|>|<\|start\|>|<\|end\|>).)*)<\|message\|>", re.DOTALL
)
_TO = re.compile(r"to=functions\.([^\s<]+)")
_END = re.compile(r"<\|(?:end|call|return)\|>")
_MARKS = Marks("<|start|>assistant", "<|call|>")
_BEGUN = re.compile(r"\s*(?:<\|start\|>assistant)?(?:<\|channel\|>\w+)?\s*to=functions\.([^\s<]+)[\s<]")


def _read_call(text: str, header: int, body: int, name: str, turn: TurnSoFar) -> int:
    """Read the call whose arguments begin at `body`; return where the text goes on."""
    json_at = read_json(text, body)
    if json_at.state == "torn":
        return _MARKS.give_up(text, header, turn, "", _BEGUN, (len(text), len(text)))
    end = _END.search(text, json_at.end)
    stop = end.start() if end else len(text)
    whole = json_at.state == "whole" and not text[json_at.end : stop].strip()
    if whole and isinstance(json_at.value, dict):
        turn.add(ParsedCall(name, json_at.value), text[header:stop])
    else:
        turn.add("arguments are not an object" if whole else "not JSON", text[header:stop])
    return end.end() if end else stop


def _parse(text: str, tools: Sequence[ToolSchema]) -> ParsedTurn:
    """Take a turn apart, message by message; text without a header is content."""
    turn, position = TurnSoFar(), 0
    while header := _HEADER.match(text, position):
        if to := _TO.search(header[1]):
            position = _read_call(text, position, header.end(), to[1], turn)
            continue
        end = _END.search(text, header.end())
        add = turn.think if "<|channel|>analysis" in header[1] else turn.say
        add(text, header.end(), end.start() if end else len(text))
        position = end.end() if end else len(text)
    rest = text[position:]
    if _BEGUN.match(rest):
        _MARKS.give_up(rest, 0, turn, "", _BEGUN, (len(rest), len(rest)))
    else:
        turn.say(text, position, len(text))
    return turn.done()


HARMONY = Syntax("Harmony", _parse)
