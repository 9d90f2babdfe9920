from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdft_cli.records import Message
from sdft_cli.traces.agents.gemini_cli import read
from sdft_cli.traces.types import FileSessions
from tests.traces.agents.sessions import AGENT_SESSIONS, fn_call, fn_response

WriteLines = Callable[..., Path]
HEADER = AGENT_SESSIONS["gemini-cli"][0]


def user(name: str, text: Any) -> dict[str, Any]:
    return {"id": name, "type": "user", "content": text}


def gemini(name: str, text: Any, *calls: dict[str, Any], **extra: Any) -> dict[str, Any]:
    return {"id": name, "type": "gemini", "content": text, **({"toolCalls": list(calls)} if calls else {}), **extra}


def call(name: str, *result: Any, **extra: Any) -> dict[str, Any]:
    return {"id": name, "name": "run", "args": {"n": name}, "result": list(result) or None, **extra}


def told(found: FileSessions) -> list[list[tuple[str, str, str | None]]]:
    return [[(m.role, m.content, m.status) for m in s.messages] for s in found.sessions]


def test_errors_and_cancelled_calls_are_as_recorded(write_jsonl: WriteLines) -> None:
    calls = [
        call("a", fn_response("run", "a", error="no such file"), status="error"),
        call("b", fn_response("run", "b", error="[Operation Cancelled] by the user"), status="cancelled"),
        call("c", status="executing"),
        call("d", "plain text"),
        call("e", fn_response("run", "e", rows=[1, 2])),
    ]
    found = read(write_jsonl("g.jsonl", [HEADER, user("1", "go"), gemini("2", "", *calls)]))
    results = [(m.tool_call_id, m.content) for m in found.sessions[0].messages if m.role == "tool"]
    assert results == [
        ("a", "no such file"),
        ("b", "[Operation Cancelled] by the user"),
        ("d", "plain text"),
        ("e", '{"rows": [1, 2]}'),
    ]
    assert found.report.notes["unanswered_calls"] == 1


def test_results_of_parallel_calls_may_stand_with_each_of_them(write_jsonl: WriteLines) -> None:
    both = [fn_response("run", "a", output="1"), fn_response("run", "b", output="2")]
    unnamed = [{"functionResponse": {"response": {"output": "3"}}}, {"inlineData": {"mimeType": "image/png"}}]
    calls = [call("a", *both), call("b", *both), call("c", *unnamed)]
    found = read(write_jsonl("g.jsonl", [HEADER, user("1", "go"), gemini("2", "", *calls)]))
    results = [(m.tool_call_id, m.content) for m in found.sessions[0].messages if m.role == "tool"]
    assert results == [("a", "1"), ("b", "2"), ("c", "3\n[image]")]


def test_a_rewound_turn_is_abandoned_and_so_is_all_after_an_unknown_message(write_jsonl: WriteLines) -> None:
    lines = [HEADER, user("1", "go"), gemini("2", "wrong"), {"$rewindTo": "2"}, gemini("3", "right")]
    found = read(write_jsonl("g.jsonl", lines))
    assert told(found) == [[("user", "go", None), ("assistant", "right", None)]]
    assert found.report.fates == {1: "metadata", 2: "conversation", 3: "abandoned", 4: "rewind", 5: "conversation"}
    assert [(r.record_id, r.reason) for r in found.report.lost_turns] == [("g/abandoned-2", "abandoned_branch")]
    lines[3] = {"$rewindTo": "nowhere"}
    found = read(write_jsonl("h.jsonl", lines))
    assert told(found) == [[("assistant", "right", None)]]
    assert found.report.lines["abandoned"] == 2


def test_a_replaced_history_is_a_new_context_whose_old_turns_count_once(write_jsonl: WriteLines) -> None:
    summary = [user("s", "So far."), gemini("t", "Got it."), gemini("2", "first")]
    lines = [
        HEADER,
        user("1", "go"),
        gemini("2", "first"),
        {"$set": {"messages": summary}},
        user("3", "on"),
        gemini("4", "next"),
    ]
    found = read(write_jsonl("g.jsonl", lines))
    assert told(found) == [
        [("user", "go", None), ("assistant", "first", None)],
        [
            ("user", "So far.", None),
            ("assistant", "Got it.", "synthetic"),
            ("assistant", "first", "repeated"),
            ("user", "on", None),
            ("assistant", "next", None),
        ],
    ]
    assert [s.session_id for s in found.sessions] == ["g", "g#2"]
    assert {s.group for s in found.sessions} == {"g"}
    assert found.report.lines == {"metadata": 1, "conversation": 5}


def test_a_turn_that_gets_its_calls_after_the_history_was_replaced_has_them_where_it_was_written(
    write_jsonl: WriteLines,
) -> None:
    done = gemini("2", "", call("a", fn_response("run", "a", output="ok")))
    lines = [HEADER, user("1", "go"), gemini("2", ""), {"$set": {"messages": [user("1", "go"), gemini("2", "")]}}, done]
    found = read(write_jsonl("g.jsonl", lines))
    (session,) = found.sessions
    assert [m.role for m in session.messages] == ["user", "assistant", "tool"]
    assert session.messages[1].status is None


def test_results_kept_as_messages_of_the_user_are_shown_once(write_jsonl: WriteLines) -> None:
    answered = gemini("2", [fn_call("run", "a", n=1)], call("a", fn_response("run", "a", output="ok")))
    again = user("3", [fn_response("run", "a", output="ok")])
    found = read(write_jsonl("g.jsonl", [HEADER, user("1", "go"), answered, again, gemini("4", "done")]))
    assert [m.role for m in found.sessions[0].messages] == ["user", "assistant", "tool", "assistant"]
    only_there = [HEADER, user("1", "go"), gemini("2", [fn_call("run", "a", n=1)]), again, gemini("4", "done")]
    later = read(write_jsonl("h.jsonl", only_there))
    assert later.sessions[0].messages[2] == Message("tool", "ok", tool_call_id="a", name="run")


def test_a_whole_session_in_one_document_and_a_subagents_group(tmp_path: Path) -> None:
    document = {
        **HEADER,
        "messages": [user("1", "go"), gemini("2", "done"), {"id": "3", "type": "info", "content": "x"}],
    }
    path = tmp_path / "session.json"
    path.write_text(json.dumps(document))
    found = read(path)
    assert told(found) == [[("user", "go", None), ("assistant", "done", None)]]
    assert found.report.fates == {1: "conversation"}
    inner = tmp_path / "parent" / "sub.json"
    inner.parent.mkdir()
    inner.write_text(json.dumps({**document, "sessionId": "sub", "kind": "subagent"}))
    assert [(s.session_id, s.group) for s in read(inner).sessions] == [("sub", "parent")]


def test_pictures_and_thoughts_in_parts(write_jsonl: WriteLines) -> None:
    prompt = [
        "see ",
        {"inlineData": {"mimeType": "image/png", "data": "x"}},
        {"fileData": {"mimeType": "application/pdf"}},
        7,
    ]
    turn = gemini("2", [{"text": "hm", "thought": True}, {"text": "I see."}])
    found = read(write_jsonl("g.jsonl", [HEADER, user("1", prompt), turn]))
    assert found.sessions[0].messages == (
        Message("user", "see [image][file]"),
        Message("assistant", "I see.", reasoning="hm"),
    )
    assert +found.report.notes == {"images": 1, "documents": 1, "unknown_blocks": 1}
