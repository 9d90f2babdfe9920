from __future__ import annotations

import json

import pytest

from sdft_cli.prompts.tool_calls import parse_turn
from sdft_cli.prompts.tool_scores import agrees, score_tool_turn, validates
from sdft_cli.records import Message, ToolCall, ToolSchema

READ = ToolSchema(
    "Read",
    "",
    json.dumps({"type": "object", "properties": {"file_path": {"type": "string"}}, "required": ["file_path"]}),
)
BASH = ToolSchema("Bash", "", json.dumps({"type": "object", "properties": {"command": {"type": "string"}}}))
EXPERT = Message("assistant", "", (ToolCall("c", "Read", '{"file_path": "a"}'),))


def block(name: str, **arguments: object) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("no call", (False, False, False)),
        ('<tool_call>{"name": "Read"', (False, False, False)),
        (block("Bash", command="ls"), (True, False, False)),
        (block("Read"), (True, True, False)),
        (block("Read", file_path=3), (True, True, False)),
        (block("Read", file_path="b"), (True, True, True)),
        (block("Read", file_path="b") * 2, (True, False, False)),
        (block("Read", file_path="b") + "<tool_call>{", (False, False, False)),
    ],
)
def test_scores(answer: str, expected: tuple[bool, bool, bool]) -> None:
    score = score_tool_turn(parse_turn(answer, [READ, BASH]), EXPERT, [READ, BASH])
    assert (score.parsed, score.named, score.valid) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("no call", False),
        ("", False),
        ("<think>" + block("Read") + "</think>no call", False),
        (block("Read"), True),
        ("<tool_call>{oops}</tool_call>", True),  # no call, but not left open
        ('<tool_call>{"name": "Read"', False),
        ('<tool_call>{"q":"</tool_call>', False),
        (block("Read") + "<tool_call>{", False),
        ("<tool_call>{" + block("Read"), False),
    ],
)
def test_a_turn_is_terminated_if_it_began_calls_and_left_none_open(answer: str, expected: bool) -> None:
    assert score_tool_turn(parse_turn(answer, [READ]), EXPERT, [READ]).terminated is expected


def test_parallel_calls_are_unordered() -> None:
    expert = Message("assistant", "", (ToolCall("1", "Read", "{}"), ToolCall("2", "Bash", "{}")))
    answer = parse_turn(block("Bash", command="ls") + block("Read", file_path="a"))
    assert score_tool_turn(answer, expert, [READ, BASH]).valid


def test_unknown_tools_broken_schemas_and_remote_references_fit_nothing() -> None:
    assert not validates("Nope", {}, [READ])
    assert not validates("x", {}, [ToolSchema("x", "", '{"type": 7}')])
    assert not validates("x", {}, [ToolSchema("x", "", '{"$ref": "http://127.0.0.1:9/schema.json"}')])


CUT_READ = '<tool_call>\n{"name": "Read", "arguments": {"file_pa'
XML_READ = "<tool_call>\n<function=Read>\n<parameter=file_path>\nsrc"
TWO = Message("assistant", "", (ToolCall("1", "Read", "{}"), ToolCall("2", "Bash", "{}")))
PROSE = Message("assistant", "Done.")


@pytest.mark.parametrize(
    ("expert", "answer", "finished", "expected"),
    [
        (EXPERT, block("Read", wrong=1), True, True),  # the same tool; its arguments do not matter
        (EXPERT, block("Bash"), True, False),
        (EXPERT, block("Read") * 2, True, False),
        (EXPERT, CUT_READ, True, False),  # it ended its turn inside a call
        (EXPERT, CUT_READ, False, True),  # the cap ended it
        (EXPERT, XML_READ, False, True),
        (EXPERT, '<tool_call>\n{"name": "Rea', False, False),
        (EXPERT, '<tool_call>\n{"name": "Read", "arguments": {"file_path": "a</tool_call>', False, True),
        (EXPERT, block("Read"), False, True),
        (EXPERT, block("Read") + CUT_READ, False, False),
        (EXPERT, "I will read", False, False),
        (TWO, block("Bash"), True, False),
        (TWO, block("Bash"), False, True),
        (TWO, block("Bash") + CUT_READ, False, True),
        (TWO, block("Read") + CUT_READ, False, False),
        (TWO, "<tool_call>x</tool_call>" + CUT_READ, False, False),
        (PROSE, "Done", True, True),
        (PROSE, "Done", False, True),
        (PROSE, block("Read"), True, False),
        (PROSE, "<tool_call>", False, False),
    ],
)
def test_agreement(expert: Message, answer: str, finished: bool, expected: bool) -> None:
    assert agrees(parse_turn(answer, [READ, BASH]), finished, expert) is expected


def test_only_a_last_call_can_be_begun() -> None:
    assert parse_turn(CUT_READ).begun == "Read"
    assert parse_turn(XML_READ).begun == "Read"
    assert parse_turn(CUT_READ + block("Bash")).begun is None
    assert parse_turn(CUT_READ + "<tool_call>").begun == "Read"  # the tag is in the string
    assert parse_turn('<tool_call>{"name": "Read", "arguments": {<tool_call>').begun is None
    assert parse_turn(block("Bash")).begun is None
    assert parse_turn("<think>" + CUT_READ).begun is None
