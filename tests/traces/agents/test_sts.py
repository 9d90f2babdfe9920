from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sdft_cli.records import Message, ToolCall
from sdft_cli.traces.agents.sts import looks_like, read
from tests.traces.agent_sessions import SESSIONS

HEADER = {"type": "session", "harness": "mine", "id": "s"}


def test_it_is_told_from_pi_and_openclaw_whose_header_is_alike() -> None:
    assert looks_like([HEADER])
    assert not any(looks_like(SESSIONS[agent]) for agent in ("pi", "openclaw"))


def test_unknown_roles_orphan_results_and_arguments_as_objects(write_jsonl: Callable[..., Path]) -> None:
    call = {"id": "k", "function": {"name": "f", "arguments": {"a": 1}}}
    messages = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": None, "toolCalls": [call, "x"]},
        {"role": "tool", "content": "1", "toolCallId": "k"},
        {"role": "tool", "content": "2"},
        {"role": "robot", "content": "3"},
        {"role": "assistant", "content": "done"},
    ]
    found = read(
        write_jsonl("s.jsonl", [HEADER, *({"type": "message", "message": m} for m in messages), {"type": "x"}])
    )
    assert found.sessions[0].messages == (
        Message("user", "go"),
        Message("assistant", "", (ToolCall("k", "f", '{"a": 1}'),)),
        Message("tool", "1", tool_call_id="k", name="f"),
        Message("assistant", "done"),
    )
    assert found.report.fates == {
        1: "session",
        **dict.fromkeys((2, 3, 4, 7), "conversation"),
        5: "orphan_result",
        **dict.fromkeys((6, 8), "unknown_type"),
    }


def test_a_session_without_a_turn_is_counted(write_jsonl: Callable[..., Path]) -> None:
    found = read(write_jsonl("s.jsonl", [HEADER, {"type": "message", "message": {"role": "user", "content": "go"}}]))
    assert found.sessions == []
    assert found.report.lines == {"session": 1, "no_turns": 1}
    assert found.report.notes["contexts_without_turns"] == 1
