from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from sdft_cli.records import Message, ToolCall
from sdft_cli.traces.agents.calls import json_text, one_system, pair_calls, tool_call


def deep(depth: int = 100_000) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("arguments", "text", "note"),
    [
        ({"a": "é"}, '{"a": "é"}', None),
        (r'{"a": "\ud83d"}', '{"a": "\ufffd"}', None),
        ('{"b": 1, "a": 2}', '{"b": 1, "a": 2}', None),
        (None, "{}", None),
        ("", "{}", None),
        ("ls -l", '{"input": "ls -l"}', "text_arguments"),
        ("[1]", '{"input": "[1]"}', "text_arguments"),
        ([1], "{}", "non_object_arguments"),
        (5, "{}", "non_object_arguments"),
    ],
)
def test_arguments_become_the_text_of_an_object(arguments: Any, text: str, note: str | None) -> None:
    notes: Counter[str] = Counter()
    assert tool_call("k", "f", arguments, notes) == ToolCall("k", "f", text)
    assert notes == ({note: 1} if note else {})


def test_ids_and_names_that_are_no_texts_are_empty() -> None:
    assert tool_call(7, ["f"], {}, Counter()) == ToolCall("", "", "{}")
    assert json_text(None, Counter()) == ""


def test_what_is_nested_too_deep_to_be_written_is_left_out_and_counted() -> None:
    notes: Counter[str] = Counter()
    assert tool_call("k", "f", {"a": deep()}, notes).arguments == "{}"
    assert json_text(deep(), notes) == ""
    assert notes == {"too_deep_arguments": 1, "too_deep_results": 1}


def test_results_find_their_calls_by_id_then_by_name() -> None:
    calls = (ToolCall("a", "f", "{}"), ToolCall("a", "f", "{}"), ToolCall("", "g", "{}"))
    results = [
        Message("tool", "1", tool_call_id="a"),
        Message("tool", "2", tool_call_id="a"),
        Message("tool", "3", tool_call_id="x", name="g"),
        Message("tool", "4", tool_call_id="a"),
    ]
    notes: Counter[str] = Counter()
    turn, *found = pair_calls([Message("assistant", "", calls), *results], notes)
    assert turn is not None
    assert [call.id for call in turn.tool_calls] == ["a", "a~2", "call"]
    assert [m and (m.content, m.tool_call_id, m.name) for m in found] == [
        ("1", "a", "f"),
        ("2", "a~2", "f"),
        ("3", "call", "g"),
        None,
    ]
    assert +notes == {"orphan_tool_results": 1}


@pytest.mark.parametrize(
    ("roles", "contents", "joined"),
    [
        ("ssus", ["s0\n\ns1", "u2", "s3"], 2),
        ("su", ["s0", "u1"], 0),
        ("us", ["u0", "s1"], 0),
        ("sss", ["s0\n\ns1\n\ns2"], 3),
        ("", [], 0),
    ],
)
def test_leading_system_messages_become_one(roles: str, contents: list[str], joined: int) -> None:
    notes: Counter[str] = Counter()
    messages = [Message("system" if r == "s" else "user", f"{r}{i}") for i, r in enumerate(roles)]
    assert [m.content for m in one_system(messages, notes)] == contents
    assert notes["joined_system_messages"] == joined
