from __future__ import annotations

import json

import pytest

from sdft_cli.prompts.tool_calls import parse_turn
from sdft_cli.prompts.tool_scores import score_tool_turn, validates
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


def test_parallel_calls_are_unordered() -> None:
    expert = Message("assistant", "", (ToolCall("1", "Read", "{}"), ToolCall("2", "Bash", "{}")))
    answer = parse_turn(block("Bash", command="ls") + block("Read", file_path="a"))
    assert score_tool_turn(answer, expert, [READ, BASH]).valid


def test_unknown_tools_broken_schemas_and_remote_references_fit_nothing() -> None:
    assert not validates("Nope", {}, [READ])
    assert not validates("x", {}, [ToolSchema("x", "", '{"type": 7}')])
    assert not validates("x", {}, [ToolSchema("x", "", '{"$ref": "http://127.0.0.1:9/schema.json"}')])
