"""Tool calls of an answer against the expert's, in the manner of BFCL: form, name, arguments. No torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jsonschema_rs

from sdft_cli.prompts.tool_calls import ParsedCall, ParsedTurn, same_calls
from sdft_cli.records import Message, ToolSchema


@dataclass(frozen=True, slots=True)
class ToolScore:
    """How one answer to an expert's tool turn did; parallel calls are unordered.

    `terminated`: at least one call was begun, and none was left open. `parsed`: at least one call, and every call that
    was begun parses. `named`: parsed, and the same tools as the expert, as a multiset. The rest imply `named`, and hold
    for all calls: `required`: no required argument is missing; `known`: no argument that the schema does not name;
    `valid`: the arguments validate against the schema (types, and required ones too); `exact`: the expert's own
    arguments.
    """

    terminated: bool
    parsed: bool
    named: bool
    required: bool
    known: bool
    valid: bool
    exact: bool


def _schema(name: str, tools: Sequence[ToolSchema]) -> Any:
    return next((json.loads(tool.parameters) for tool in tools if tool.name == name), None)


def validates(name: str, arguments: dict[str, object], tools: Sequence[ToolSchema]) -> bool:
    """Say whether arguments fit a tool's schema; an unknown tool or a schema that is none fits nothing."""
    schema = _schema(name, tools)
    if schema is None:
        return False
    try:
        return bool(jsonschema_rs.is_valid(schema, arguments, offline=True))
    except ValueError:  # an invalid schema, or a remote reference that must not be fetched
        return False


def _has_required(call: ParsedCall, tools: Sequence[ToolSchema]) -> bool:
    schema = _schema(call.name, tools)
    return isinstance(schema, dict) and set(schema.get("required") or ()) <= call.arguments.keys()


def _all_known(call: ParsedCall, tools: Sequence[ToolSchema]) -> bool:
    schema = _schema(call.name, tools)
    return isinstance(schema, dict) and call.arguments.keys() <= (schema.get("properties") or {}).keys()


def score_tool_turn(answer: ParsedTurn, expert: Message, tools: Sequence[ToolSchema]) -> ToolScore:
    """Score an answer to a turn in which the expert called tools."""
    parsed = answer.well_formed
    named = parsed and sorted(c.name for c in answer.calls) == sorted(c.name for c in expert.tool_calls)
    return ToolScore(
        terminated=bool(answer.calls or answer.errors) and "unterminated" not in answer.errors,
        parsed=parsed,
        named=named,
        required=named and all(_has_required(c, tools) for c in answer.calls),
        known=named and all(_all_known(c, tools) for c in answer.calls),
        valid=named and all(validates(c.name, c.arguments, tools) for c in answer.calls),
        exact=named and same_calls(answer, expert),
    )


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
