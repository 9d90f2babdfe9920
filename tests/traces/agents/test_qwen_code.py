from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sdft_cli.traces.agents.qwen_code import looks_like, read
from sdft_cli.traces.types import FileSessions
from tests.traces.agents.sessions import AGENT_SESSIONS, fn_call, fn_response, qwen
from tests.traces.lines import line

WriteLines = Callable[..., Path]


def told(found: FileSessions) -> list[list[tuple[str, str, str | None]]]:
    return [[(m.role, m.content, m.status) for m in s.messages] for s in found.sessions]


def test_it_is_told_from_claude_code() -> None:
    assert looks_like(AGENT_SESSIONS["qwen-code"])
    assert looks_like([qwen("1", None, "system", subtype="slash_command")])
    assert not looks_like([line("1", None, "user", "hi"), line("2", "1", "system", subtype="compact_boundary")])
    assert not looks_like([{"type": "system", "subtype": ["x"], "uuid": "1", "sessionId": "s"}])


def test_the_other_branch_is_abandoned_and_a_missing_parent_is_repaired(write_jsonl: WriteLines) -> None:
    lines = [
        qwen("1", None, "user", {"text": "go"}),
        qwen("2", "1", "assistant", {"text": "left"}),
        qwen("3", "1", "system", subtype="rewind", systemPayload={"truncatedCount": 1}),
        qwen("4", "3", "assistant", {"text": "right"}),
        qwen("5", "lost", "user", {"text": "on"}),
        qwen("6", "5", "assistant", {"text": "done"}),
    ]
    found = read(write_jsonl("q.jsonl", lines))
    assert told(found) == [
        [("user", "go", None), ("assistant", "right", None), ("user", "on", None), ("assistant", "done", None)]
    ]
    assert found.report.fates[2] == "abandoned"
    assert found.report.notes["repaired_links"] == 1
    assert [(r.record_id, r.reason) for r in found.report.lost_turns] == [("q/abandoned-2", "abandoned_branch")]


def test_a_compression_starts_a_context_with_the_history_that_it_left(write_jsonl: WriteLines) -> None:
    history = [{"role": "user", "parts": [{"text": "So far."}]}, {"role": "model", "parts": [{"text": "Got it."}]}]
    lines = [
        qwen("1", None, "user", {"text": "go"}),
        qwen("2", "1", "assistant", {"text": "first"}),
        qwen("3", "2", "system", subtype="chat_compression", systemPayload={"info": {}, "compressedHistory": history}),
        qwen("4", "3", "user", {"text": "on"}),
        qwen("5", "4", "assistant", {"text": "next"}),
    ]
    found = read(write_jsonl("q.jsonl", lines))
    assert told(found) == [
        [("user", "go", None), ("assistant", "first", None)],
        [
            ("user", "So far.", None),
            ("assistant", "Got it.", "repeated"),
            ("user", "on", None),
            ("assistant", "next", None),
        ],
    ]
    assert [s.session_id for s in found.sessions] == ["q", "q#2"]
    assert found.report.notes["compactions"] == 1
    lines[2]["systemPayload"] = {"info": {}}
    assert len(told(read(write_jsonl("r.jsonl", lines)))) == 1


def test_a_subagent_is_a_session_of_its_own_with_what_it_was_given(write_jsonl: WriteLines) -> None:
    given = [{"role": "user", "parts": [{"text": "Explore."}]}]
    lines = [
        qwen("1", None, "user", {"text": "go"}),
        qwen("2", "1", "assistant", {"text": "done"}),
        qwen(
            "a",
            None,
            "system",
            subtype="agent_bootstrap",
            systemPayload={"history": given},
            isSidechain=True,
            agentId="x",
        ),
        qwen("b", "a", "assistant", {"text": "found"}, isSidechain=True, agentId="x"),
    ]
    found = read(write_jsonl("q.jsonl", lines))
    assert told(found) == [
        [("user", "go", None), ("assistant", "done", None)],
        [("user", "Explore.", None), ("assistant", "found", None)],
    ]
    assert [(s.session_id, s.group) for s in found.sessions] == [("q", "q"), ("q/agent-x", "q")]
    assert found.report.lines == {"conversation": 4}


def test_parallel_calls_errors_and_calls_without_ids(write_jsonl: WriteLines) -> None:
    unnamed = {"functionCall": {"name": "list", "args": {}}}
    lines = [
        qwen("1", None, "user", {"text": "go"}),
        qwen("2", "1", "assistant", fn_call("read", "a", path="x"), fn_call("read", "b", path="y"), unnamed),
        qwen("3", "2", "tool_result", fn_response("read", "b", error="gone")),
        qwen("4", "3", "tool_result", fn_response("read", "a", output="1")),
        qwen("5", "4", "tool_result", {"functionResponse": {"name": "list", "response": {"output": ""}}}),
        qwen("6", "5", "tool_result", fn_response("read", "z", output="whose?")),
        qwen("7", "6", "assistant", {"text": "done"}),
    ]
    found = read(write_jsonl("q.jsonl", lines))
    results = [(m.tool_call_id, m.name, m.content) for m in found.sessions[0].messages if m.role == "tool"]
    assert results == [("b", "read", "gone"), ("a", "read", "1"), ("call", "list", "")]
    assert found.report.fates[6] == "orphan_result"
    assert found.report.notes["orphan_tool_results"] == 1


def test_a_message_in_two_lines_and_lines_without_parents_are_one_path(write_jsonl: WriteLines) -> None:
    twice = [qwen("1", None, "user", {"text": "go"}), qwen("2", "1", "assistant", {"text": "a"})]
    twice += [qwen("2", "1", "assistant", {"text": "b"}), qwen("3", "2", "user", {"text": "?"})]
    found = read(write_jsonl("q.jsonl", [*twice, qwen("4", "3", "assistant", {"text": "c"})]))
    assert [content for _, content, _ in told(found)[0]] == ["go", "a", "b", "?", "c"]
    flat = [{k: v for k, v in x.items() if k not in ("parentUuid", "uuid")} for x in AGENT_SESSIONS["qwen-code"]]
    assert [len(s.messages) for s in read(write_jsonl("r.jsonl", flat)).sessions] == [4]
