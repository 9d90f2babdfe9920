"""Tool calls of an answer against the expert's: parsed, named, valid. Pure functions, no torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import jsonschema_rs

from sdft_cli.prompts.tool_calls import ParsedTurn
from sdft_cli.records import Message, ToolSchema


@dataclass(frozen=True, slots=True)
class ToolScore:
    """How one answer to an expert's tool turn did; each flag implies the one before it.

    `parsed`: at least one call, and every call that was begun parses. `named`: the same tools as the expert, as a
    multiset. `valid`: all arguments validate against their tools' schemas.
    """

    parsed: bool
    named: bool
    valid: bool


def validates(name: str, arguments: dict[str, object], tools: Sequence[ToolSchema]) -> bool:
    """Say whether arguments fit a tool's schema; an unknown tool or a schema that is none fits nothing."""
    schema = next((tool.parameters for tool in tools if tool.name == name), None)
    if schema is None:
        return False
    try:
        return bool(jsonschema_rs.is_valid(json.loads(schema), arguments, offline=True))
    except ValueError:  # an invalid schema, or a remote reference that must not be fetched
        return False


def score_tool_turn(answer: ParsedTurn, expert: Message, tools: Sequence[ToolSchema]) -> ToolScore:
    """Score an answer to a turn in which the expert called tools; parallel calls are unordered."""
    parsed = answer.well_formed
    named = parsed and sorted(c.name for c in answer.calls) == sorted(c.name for c in expert.tool_calls)
    valid = named and all(validates(c.name, c.arguments, tools) for c in answer.calls)
    return ToolScore(parsed, named, valid)


def agrees(answer: ParsedTurn, finished: bool, expert: Message) -> bool:
    """Say whether an answer does what the expert did: calls the same tools, or calls none where the expert did not.

    An answer that was cut off (`finished` false) is judged by what there is of it: it agrees if it has named at least
    one tool and only tools that the expert called. Otherwise the cap would count a long call as a wrong one, and more
    often so for the prompt whose answers are more like the expert's.
    """
    if not expert.tool_calls:
        return not answer.calls and not answer.errors
    expected = Counter(call.name for call in expert.tool_calls)
    named = Counter(call.name for call in answer.calls)
    if finished or answer.begun is None:
        return answer.well_formed and (named == expected if finished else named <= expected)
    return answer.errors == ("unterminated",) and named + Counter([answer.begun]) <= expected
