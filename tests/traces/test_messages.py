from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from sdft_cli.records import Message, Session, ToolCall, ToolSchema
from sdft_cli.traces.source import read_file
from tests.datasets import with_tools


def test_openai_conversations_are_read_with_their_tools(write_jsonl: Callable[..., Path]) -> None:
    row = {
        "id": "x",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "hm",
                "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
            },
            {"role": "tool", "tool_call_id": "c", "content": "out"},
            {"role": "assistant", "content": "done"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    }
    found = read_file(write_jsonl("m.jsonl", [row]))
    assert found is not None
    (session,) = found.sessions
    assert session.session_id == "x"
    assert session.messages == (
        Message("system", "be brief"),
        Message("user", "hi"),
        Message("assistant", "", (ToolCall("c", "f", '{"a": 1}'),), reasoning="hm"),
        Message("tool", "out", tool_call_id="c"),
        Message("assistant", "done"),
    )
    assert session.tools == (ToolSchema("f", "", '{"type": "object"}', "given"),)


def test_columns_may_be_json_text(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    tools = [{"name": "f", "description": "does", "input_schema": {"type": "object"}}]
    rows = {
        "id": ["x", "y"],
        "messages": [json.dumps(turns), json.dumps([*turns, *turns])],
        "tools": [json.dumps(tools)] * 2,
    }
    pl.DataFrame(rows).write_parquet(tmp_path / "rows.parquet")
    found = read_file(tmp_path / "rows.parquet")
    assert found is not None
    assert [(s.session_id, len(s.messages)) for s in found.sessions] == [("x", 2), ("y", 4)]
    assert found.sessions[0].tools == (ToolSchema("f", "does", '{"type": "object"}', "given"),)


@pytest.mark.parametrize(
    "messages", ["[]", "[1]", "hello", "[not json", '[{"type": "text"}]', '{"role": "user"}', 5, None]
)
def test_a_column_of_other_texts_is_no_conversation(messages: Any, write_jsonl: Callable[..., Path]) -> None:
    assert read_file(write_jsonl("m.jsonl", [{"messages": messages}])) is None


def test_rows_that_are_no_conversation_are_named_and_repeated_ids_stay_apart(write_jsonl: Callable[..., Path]) -> None:
    good = {"id": "x", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    silent = {"messages": [{"role": "user", "content": "a"}]}
    bad = {"messages": [{"role": "robot", "content": "a"}]}
    found = read_file(write_jsonl("m.jsonl", [good, good, silent, bad, b"{"]))
    assert found is not None
    assert [s.session_id for s in found.sessions] == ["x", "x~2"]
    assert {s.group for s in found.sessions} == {"x"}
    assert found.report.lines == {"conversation": 3, "broken": 2}
    assert found.report.notes["contexts_without_turns"] == 1
    assert found.report.broken == ["m.jsonl:4 (role 'robot' is unknown)", "m.jsonl:5 (not a JSON object)"]


def test_a_lone_surrogate_in_an_inner_json_text_is_replaced(write_jsonl: Callable[..., Path]) -> None:
    bad = "bad \ud83d emoji"
    call = {"id": "c", "function": {"name": "Write", "arguments": json.dumps({"text": bad})}}
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "tool_calls": [call]}]
    columns = {
        "messages": json.dumps([{"role": "user", "content": bad}, {"role": "assistant", "content": "x"}]),
        "tools": json.dumps([{"name": "f", "parameters": {"type": "object", "description": bad}}]),
    }
    found = read_file(write_jsonl("m.jsonl", [{"messages": turns}, columns]))
    assert found is not None
    one, other = found.sessions
    assert one.messages[1].tool_calls[0].arguments == '{"text": "bad \ufffd emoji"}'
    assert other.messages[0].content == "bad \ufffd emoji"
    assert other.tools[0].parameters == '{"type": "object", "description": "bad \ufffd emoji"}'


def test_a_list_of_no_tools_is_recorded(write_jsonl: Callable[..., Path]) -> None:
    turns = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    rows = [{"messages": turns, "tools": []}, {"messages": turns, "tools": "[]"}, {"messages": turns, "tools": None}]
    found = read_file(write_jsonl("m.jsonl", rows))
    assert found is not None
    other = Session("x", (Message("assistant", "", (ToolCall("c", "Bash", '{"command": "ls"}'),)),))
    offered = with_tools([*found.sessions, other])
    assert [[tool.name for tool in session.tools] for session in offered] == [[], [], ["Bash"], ["Bash"]]
