from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdft_cli.records import Message, ToolCall, ToolSchema
from sdft_cli.traces.agents.blocks import expanded
from sdft_cli.traces.messages import session_of
from sdft_cli.traces.source import read_file
from sdft_cli.traces.types import FileSessions, ReadReport

TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "What is in a and b?"},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "Look first", "signature": "x"},
            {"type": "text", "text": "Looking."},
            {"type": "tool_use", "id": "k1", "name": "Read", "input": {"path": "a"}},
            {"type": "tool_use", "id": "k2", "name": "Read", "input": {"path": "b"}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "k1", "content": "  1\n"},
            {
                "type": "tool_result",
                "tool_use_id": "k2",
                "content": [{"type": "text", "text": "2"}, {"type": "image"}],
                "is_error": True,
            },
            {"type": "text", "text": "and hurry"},
        ],
    },
    {"role": "assistant", "content": [{"type": "text", "text": "One."}]},
]
TOOL = {"name": "Read", "description": "Reads.", "input_schema": {"type": "object", "properties": {}}}
ROW = {"id": "x", "system": "Be exact.", "messages": TURNS, "tools": [TOOL]}
EXPECTED = (
    Message("system", "Be exact."),
    Message("user", "What is in a and b?"),
    Message(
        "assistant",
        "Looking.",
        (ToolCall("k1", "Read", '{"path": "a"}'), ToolCall("k2", "Read", '{"path": "b"}')),
        reasoning="Look first",
    ),
    Message("tool", "  1\n", tool_call_id="k1", name="Read"),
    Message("tool", "2\n[image]", tool_call_id="k2", name="Read"),
    Message("user", "and hurry"),
    Message("assistant", "One."),
)


def read(path: Path) -> FileSessions:
    found = read_file(path)
    assert found is not None
    return found


def test_a_conversation_of_blocks_is_read_with_its_system_prompt_and_tools(write_jsonl: Callable[..., Path]) -> None:
    found = read(write_jsonl("m.jsonl", [ROW, {**ROW, "system": [{"type": "text", "text": "Be exact."}]}]))
    for session in found.sessions:
        assert session.messages == EXPECTED
        assert session.tools == (ToolSchema("Read", "Reads.", '{"type": "object", "properties": {}}', "given"),)
    assert found.report.lines == {"conversation": 2}


def test_it_is_read_from_json_and_from_parquet_as_rows_or_as_text(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps([ROW]))
    assert read(tmp_path / "m.json").sessions[0].messages == EXPECTED
    texts = {"id": "x", "system": "Be exact.", "messages": json.dumps(TURNS), "tools": json.dumps([TOOL])}
    pl.DataFrame([texts]).write_parquet(tmp_path / "texts.parquet")
    assert read(tmp_path / "texts.parquet").sessions[0].messages == EXPECTED
    result = {"type": "tool_result", "tool_use_id": "k2", "content": "2"}
    blocks = [TURNS[1], {"role": "user", "content": [TURNS[2]["content"][0], result, TURNS[2]["content"][2]]}, TURNS[3]]
    pl.DataFrame({"id": ["x"], "messages": [blocks]}).write_parquet(tmp_path / "rows.parquet")
    (session,) = read(tmp_path / "rows.parquet").sessions
    assert [m.role for m in session.messages] == ["assistant", "tool", "tool", "user", "assistant"]
    assert [c.parsed_arguments() for c in session.messages[0].tool_calls] == [{"path": "a"}, {"path": "b"}]


def test_a_server_tool_answers_in_the_middle_of_a_message() -> None:
    search = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"q": "x"}}
    found = {"type": "web_search_tool_result", "tool_use_id": "s", "content": "hits"}
    (user, first, result, second) = session_of(
        {"messages": [TURNS[0], {"role": "assistant", "content": [search, found, {"type": "text", "text": "So."}]}]},
        "m",
        ReadReport(),
    ).messages
    assert first == Message("assistant", "", (ToolCall("s", "web_search", '{"q": "x"}'),))
    assert result == Message("tool", "hits", tool_call_id="s", name="web_search")
    assert second == Message("assistant", "So.")
    last = session_of(
        {"messages": [user.as_openai(), {"role": "assistant", "content": [search, found]}]}, "m", ReadReport()
    )
    assert [m.role for m in last.messages] == ["user", "assistant", "tool"]


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (
            {"type": "tool_use", "id": "k", "name": "f", "input": [1]},
            "a tool call has no name or its arguments are not an object",
        ),
        ({"type": "tool_use", "id": "k", "input": {}}, "a tool call has no name or its arguments are not an object"),
    ],
)
def test_a_call_that_is_none_makes_the_row_broken(block: Any, reason: str, write_jsonl: Callable[..., Path]) -> None:
    found = read(write_jsonl("m.jsonl", [ROW, {"messages": [TURNS[0], {"role": "assistant", "content": [block]}]}]))
    assert found.report.broken == [f"m.jsonl:2 ({reason})"]


def test_documents_and_unknown_blocks_are_counted() -> None:
    report = ReadReport()
    content = [{"type": "document", "source": {}}, {"type": "new"}, "plain", {"type": "text", "text": "?"}]
    session = session_of({"messages": [{"role": "user", "content": content}]}, "m", report)
    assert session.messages[0].content == "[document]\nplain\n?"
    assert report.notes == {"documents": 1, "unknown_blocks": 1}


def test_openai_messages_are_left_as_they_are() -> None:
    given = [
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "tool", "content": "x"},
        5,
        None,
        {"role": "assistant"},
    ]
    assert expanded(given) == given


BLOCK = st.dictionaries(
    st.sampled_from(["type", "text", "id", "name", "input", "content", "tool_use_id", "thinking"]),
    st.sampled_from(
        ["text", "tool_use", "tool_result", "thinking", "k", 1, None, [], {}, [{"type": "text"}], {"a": 1}]
    ),
)


@given(
    st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "assistant", "x", 1, None]), "content": st.lists(BLOCK | st.text())}
        )
    )
)
def test_no_block_makes_it_fail_in_another_way_than_a_broken_row(messages: list[Any]) -> None:
    try:
        session = session_of({"messages": messages}, "m", ReadReport())
    except (ValueError, TypeError, KeyError, AttributeError):
        return
    assert all(isinstance(m.content, str) for m in session.messages)
