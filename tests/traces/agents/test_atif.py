from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdft_cli.records import Message, ToolSchema
from sdft_cli.traces.source import read_file
from sdft_cli.traces.types import FileSessions
from tests.traces.agents.sessions import AGENT_SESSIONS

WriteLines = Callable[..., Path]


def trajectory(*steps: dict[str, Any], **extra: Any) -> dict[str, Any]:
    return {
        "schema_version": "ATIF-v1.6",
        "session_id": "a",
        "agent": {"name": "x", "version": "1"},
        "steps": steps,
        **extra,
    }


def step(source: str, message: Any, **extra: Any) -> dict[str, Any]:
    return {"source": source, "message": message, **extra}


def read(path: Path) -> FileSessions:
    found = read_file(path)
    assert found is not None
    return found


def told(found: FileSessions) -> list[list[tuple[str, str, str | None]]]:
    return [[(m.role, m.content, m.status) for m in s.messages] for s in found.sessions]


def test_the_tools_of_the_agent_are_given(write_jsonl: WriteLines) -> None:
    (session,) = read(write_jsonl("a.jsonl", AGENT_SESSIONS["atif"])).sessions
    assert session.tools == (ToolSchema("read", "", '{"type": "object"}', "given"),)
    assert session.metadata["harness"] == "terminus"


def test_copied_steps_and_steps_without_a_model_are_context_only(write_jsonl: WriteLines) -> None:
    steps = [
        step("user", "go", is_copied_context=True),
        step("agent", "old", is_copied_context=True),
        step("agent", "dispatch", llm_call_count=0),
        step("agent", "new", llm_call_count=1),
    ]
    found = read(write_jsonl("a.jsonl", [trajectory(*steps)]))
    assert told(found) == [
        [
            ("user", "go", None),
            ("assistant", "old", "repeated"),
            ("assistant", "dispatch", "synthetic"),
            ("assistant", "new", None),
        ]
    ]


def test_observations_without_a_call_are_what_the_agent_was_told_next(write_jsonl: WriteLines) -> None:
    seen = {"results": [{"content": "$ ls\na.py"}, {"content": None}]}
    steps = [
        step("user", "go"),
        step("agent", "ls", observation=seen),
        step("system", "", observation=seen),
        step("agent", "ok"),
    ]
    found = read(write_jsonl("a.jsonl", [trajectory(*steps)]))
    assert told(found) == [
        [("user", "go", None), ("assistant", "ls", None), ("user", "$ ls\na.py", None), ("assistant", "ok", None)]
    ]
    assert +found.report.notes == {"observations_without_call": 3}


def test_parts_of_messages_and_results(write_jsonl: WriteLines) -> None:
    parts = [
        {"type": "text", "text": "see"},
        {"type": "image", "source": {"media_type": "image/png", "path": "x"}},
        {"type": "x"},
    ]
    call = {"tool_call_id": "k", "function_name": "shot", "arguments": {}}
    seen = {"results": [{"source_call_id": "k", "content": parts}]}
    found = read(
        write_jsonl(
            "a.jsonl", [trajectory(step("user", parts), step("agent", "", tool_calls=[call], observation=seen))]
        )
    )
    assert [m.content for m in found.sessions[0].messages] == ["see\n[image]", "", "see\n[image]"]
    assert +found.report.notes == {"images": 2, "unknown_blocks": 2}


def test_subagents_are_sessions_of_the_same_group(write_jsonl: WriteLines) -> None:
    steps = (step("user", "go"), step("agent", "done"))
    inner = {**trajectory(*steps, trajectory_id="t2"), "session_id": None}
    outer = trajectory(
        *steps, subagent_trajectories=[{**inner, "trajectory_id": "t1", "subagent_trajectories": [inner]}]
    )
    found = read(write_jsonl("a.jsonl", [outer, {**outer, "session_id": None, "trajectory_id": "t0"}]))
    assert [(s.session_id, s.group) for s in found.sessions] == [
        ("a", "a"),
        ("a/agent-t1", "a"),
        ("a/agent-t2", "a"),
        ("t0", "t0"),
        ("t0/agent-t1", "t0"),
        ("t0/agent-t2", "t0"),
    ]


def test_rows_that_are_no_trajectory_are_broken(write_jsonl: WriteLines) -> None:
    good = trajectory(step("user", "go"), step("agent", "done"))
    rows = [
        good,
        {**good, "steps": None},
        {**good, "steps": [1]},
        trajectory(step("robot", "x")),
        {"schema_version": 1},
    ]
    found = read(write_jsonl("a.jsonl", rows))
    assert len(found.sessions) == 1
    assert found.report.broken == [
        "a.jsonl:2 (no ATIF trajectory: it has no steps or no version)",
        "a.jsonl:3 (a step is no JSON object)",
        "a.jsonl:4 (source 'robot' of a step is unknown)",
        "a.jsonl:5 (no ATIF trajectory: it has no steps or no version)",
    ]


def test_a_result_without_its_call_is_counted(write_jsonl: WriteLines) -> None:
    seen = {"results": [{"source_call_id": "nowhere", "content": "x"}]}
    found = read(write_jsonl("a.jsonl", [trajectory(step("user", "go"), step("agent", "done", observation=seen))]))
    assert found.sessions[0].messages == (Message("user", "go"), Message("assistant", "done"))
    assert found.report.notes["orphan_tool_results"] == 1
