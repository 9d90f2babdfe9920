from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdft_cli.records import Message, ToolCall
from sdft_cli.traces.agents.copilot_cli import read
from sdft_cli.traces.types import FileSessions
from tests.traces.agents.sessions import event

WriteLines = Callable[..., Path]
START = event(0, "session.start", sessionId="c")
PROMPT = event(1, "user.message", content="go")


def told(found: FileSessions) -> list[list[tuple[str, str, str | None]]]:
    return [[(m.role, m.content, m.status) for m in s.messages] for s in found.sessions]


def says(number: int, content: str, *calls: dict[str, Any], **data: Any) -> dict[str, Any]:
    return event(number, "assistant.message", messageId=f"m{number}", content=content, toolRequests=list(calls), **data)


def request(call_id: str, arguments: Any = None) -> dict[str, Any]:
    return {"toolCallId": call_id, "name": "bash", "arguments": arguments}


def test_arguments_and_results_of_every_kind(write_jsonl: WriteLines) -> None:
    lines = [
        START,
        PROMPT,
        says(
            2, "", request("a", {"x": 1}), request("b", '{"x": 2}'), request("c", "*** Begin Patch"), request("d", [1])
        ),
        event(3, "tool.execution_complete", toolCallId="b", success=False, error={"message": "denied", "code": "x"}),
        event(4, "tool.execution_complete", toolCallId="a", success=True, result={"content": "ok"}),
        event(5, "tool.execution_complete", toolCallId="c", success=True),
        event(
            6, "tool.execution_complete", toolCallId="mine", isUserRequested=True, success=True, result={"content": "!"}
        ),
        says(7, "done"),
    ]
    found = read(write_jsonl("c.jsonl", lines))
    messages = found.sessions[0].messages
    assert messages[1].tool_calls == (
        ToolCall("a", "bash", '{"x": 1}'),
        ToolCall("b", "bash", '{"x": 2}'),
        ToolCall("c", "bash", '{"input": "*** Begin Patch"}'),
        ToolCall("d", "bash", "{}"),
    )
    assert [(m.tool_call_id, m.content) for m in messages if m.role == "tool"] == [
        ("b", "denied"),
        ("a", "ok"),
        ("c", ""),
    ]
    assert found.report.fates[7] == "orphan_result"
    assert +found.report.notes == {
        "text_arguments": 1,
        "non_object_arguments": 1,
        "orphan_tool_results": 1,
        "unanswered_calls": 1,
    }


def test_a_compaction_starts_a_context_with_the_summary_and_a_failed_one_does_not(write_jsonl: WriteLines) -> None:
    lines = [
        START,
        event(1, "system.message", content="Be exact."),
        event(2, "user.message", content="go"),
        says(3, "first"),
        event(4, "session.compaction_complete", success=False, error="x"),
        says(5, "more"),
        event(6, "session.compaction_complete", success=True, summaryContent="So far."),
        event(7, "user.message", content="on"),
        says(8, "next"),
    ]
    found = read(write_jsonl("c.jsonl", lines))
    assert told(found) == [
        [
            ("system", "Be exact.", None),
            ("user", "go", None),
            ("assistant", "first", None),
            ("assistant", "more", None),
        ],
        [("system", "Be exact.", None), ("user", "So far.", None), ("user", "on", None), ("assistant", "next", None)],
    ]
    assert [s.session_id for s in found.sessions] == ["c", "c#2"]
    assert found.report.fates == {
        **dict.fromkeys((1, 5), "event"),
        **dict.fromkeys((2, 3, 4, 6, 7, 8, 9), "conversation"),
    }


def test_a_rewind_takes_back_an_event_and_all_after_it(write_jsonl: WriteLines) -> None:
    lines = [START, PROMPT, says(2, "wrong"), event(3, "session.snapshot_rewind", upToEventId="e2"), says(4, "right")]
    found = read(write_jsonl("c.jsonl", lines))
    assert told(found) == [[("user", "go", None), ("assistant", "right", None)]]
    assert found.report.fates[3] == "abandoned"
    assert [(r.record_id, r.reason) for r in found.report.lost_turns] == [("c/abandoned-e2", "abandoned_branch")]
    lines[3] = event(3, "session.snapshot_rewind", upToEventId="gone")
    assert len(told(read(write_jsonl("d.jsonl", lines)))[0]) == 3


def test_an_abort_marks_the_turn_whose_call_it_stopped(write_jsonl: WriteLines) -> None:
    abort = event(3, "abort", reason="user_initiated")
    found = read(write_jsonl("c.jsonl", [START, PROMPT, says(2, "", request("a")), abort, says(4, "done"), abort]))
    assert [status for role, _, status in told(found)[0] if role == "assistant"] == ["interrupted", None]


def test_a_subagent_is_a_session_of_its_own(write_jsonl: WriteLines) -> None:
    inner = says(3, "looked", parentToolCallId="a")
    newer = {**says(4, "looked again"), "agentId": "x"}
    found = read(write_jsonl("c.jsonl", [START, PROMPT, says(2, "", request("a")), inner, newer, says(5, "done")]))
    assert [(s.session_id, s.group) for s in found.sessions] == [("c", "c"), ("c/agent-a", "c"), ("c/agent-x", "c")]
    assert told(found)[1:] == [[("assistant", "looked", None)], [("assistant", "looked again", None)]]


def test_the_parts_of_one_answer_are_one_turn(write_jsonl: WriteLines) -> None:
    first = says(2, "One,", apiCallId="p", chunkIndex=0, chunkCount=2, reasoningText="hm")
    second = says(3, "two.", request("a"), apiCallId="p", chunkIndex=1, chunkCount=2)
    usage = event(4, "assistant.usage")
    found = read(write_jsonl("c.jsonl", [START, PROMPT, first, usage, second, says(5, "done", apiCallId="p")]))
    assert found.sessions[0].messages[1:] == (
        Message("assistant", "One,\ntwo.", (ToolCall("a", "bash", "{}"),), reasoning="hm"),
        Message("assistant", "done"),
    )
    assert found.report.lines == {"event": 2, "conversation": 4}


def test_a_file_without_a_start_is_named_by_its_folder(write_jsonl: WriteLines) -> None:
    assert read(write_jsonl("abc/events.jsonl", [PROMPT, says(2, "x")])).sessions[0].session_id == "abc"
    assert read(write_jsonl("abc/other.jsonl", [PROMPT, says(2, "x")])).sessions[0].session_id == "other"
