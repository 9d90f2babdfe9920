"""Tool calls of a turn against those of a message: do they come back from its text, are they the same?

Not every call can be written in every syntax: in some, nothing is escaped. `comes_back` says whether a rendered one can
be read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sdft_cli.prompts.syntaxes.find import prose_of
from sdft_cli.prompts.syntaxes.hermes import HERMES_OR_QWEN
from sdft_cli.prompts.syntaxes.turns import ParsedCall, ParsedTurn, Syntax
from sdft_cli.records import Message, ToolSchema

__all__ = ["ParsedCall", "ParsedTurn", "Syntax", "calls_of", "canonical", "comes_back", "parse_turn", "same_calls"]


def parse_turn(text: str, tools: Sequence[ToolSchema] = (), syntax: Syntax | None = None) -> ParsedTurn:
    """Take an assistant turn apart into prose, calls and failed calls; without a syntax, as Hermes JSON or Qwen XML."""
    return (syntax or HERMES_OR_QWEN).parse(text, tools)


def canonical(name: str, arguments: dict[str, Any]) -> str:
    """Return a call as text that is equal for equal calls: keys in any order, 1 and 1.0 alike, true and 1 not."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [plain(inner) for inner in value]
        return int(value) if isinstance(value, float) and value.is_integer() else value

    return json.dumps([name, plain(arguments)], sort_keys=True)


def comes_back(text: str, message: Message, tools: Sequence[ToolSchema], syntax: Syntax | None = None) -> bool:
    """Say whether a rendered assistant turn reads as what was rendered: its prose, its calls in their order, no more.

    False: the model's syntax cannot represent the turn, e.g. prose that spells a tag, an XML value with a closing tag
    in it, or a number where the schema allows a text too. No answer can equal such a turn. White space around the
    prose does not count: chat templates trim it.
    """
    turn = parse_turn(text, tools, syntax)
    return calls_of(turn, message) and prose_of(turn) == message.content.strip()


def calls_of(turn: ParsedTurn, message: Message) -> bool:
    """Say whether a turn has the calls of a message, in their order, and no more."""
    expected = [canonical(call.name, call.parsed_arguments()) for call in message.tool_calls]
    return not turn.errors and [canonical(call.name, call.arguments) for call in turn.calls] == expected


def same_calls(answer: ParsedTurn, message: Message) -> bool:
    """Say whether an answer makes the same calls with the same arguments; parallel calls are unordered."""
    expected = Counter(canonical(call.name, call.parsed_arguments()) for call in message.tool_calls)
    return answer.well_formed and Counter(canonical(c.name, c.arguments) for c in answer.calls) == expected
