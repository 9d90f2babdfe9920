from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdft_cli.errors import DataError
from sdft_cli.traces.agents.unread import SIGNATURES, agent_of
from sdft_cli.traces.readers import READERS
from sdft_cli.traces.source import read_source, resolve_source
from tests.traces.agent_sessions import SESSIONS
from tests.traces.agents.sessions import AGENT_SESSIONS, fn_response
from tests.traces.lines import call, line, result, text

NAMES = "Claude Code, Codex, Copilot CLI, Cursor, Droid, Gemini CLI, Hermes, OpenClaw, OpenCode, Pi or Qwen Code"
IFLOW_ID = "session-b5785972-6711-443a-9bb4-e361146f8e79"
GEMINI_RESULT = {"callId": "k", "responseParts": fn_response("read_file", "k", output="1"), "resultDisplay": "x"}
IFLOW = [
    line("1", None, "user", "go", sessionId=IFLOW_ID, version="1.0.0"),
    line("2", "1", "assistant", call("k", "read_file"), sessionId=IFLOW_ID, mid="m"),
    line("3", "2", "user", result("k", GEMINI_RESULT), sessionId=IFLOW_ID),
    line("4", "3", "assistant", text("done"), sessionId=IFLOW_ID, mid="m"),
]
OF_OTHERS: dict[str, list[list[Any]]] = {
    "iFlow": [
        IFLOW,
        [{**x, "sessionId": "s"} for x in IFLOW],
        [line("1", None, "user", result("k", fn_response("read_file", "k", output="1")))],
    ],
    "Amp": [[{"v": 3, "id": "T-1", "created": 1, "messages": [{"role": "user", "content": []}]}]],
    "Cline, Roo Code or Kilo Code": [
        [{"ts": 1, "type": "say", "say": "text", "text": "go"}],
        [{"ts": 1, "type": "ask", "ask": "tool", "text": "{}"}],
        [{"role": "user", "content": [{"type": "text", "text": "<task>go</task>\n<environment_details>"}]}],
    ],
    "Continue": [[{"sessionId": "s", "title": "x", "workspaceDirectory": "/w", "history": []}]],
    "Goose": [
        [{"working_dir": "/w"}, {"role": "assistant", "content": [{"type": "toolRequest", "id": "k", "toolCall": {}}]}],
        [{"id": "g", "conversation": [{"role": "user", "content": [{"type": "toolResponse", "id": "k"}]}]}],
    ],
    "Kimi CLI": [[{"role": "_checkpoint", "id": 0}, {"role": "user", "content": "go"}], [{"role": "_usage", "n": 1}]],
    "OpenHands": [[{"id": 0, "timestamp": "t", "source": "user", "action": "message", "args": {"content": "go"}}]],
    "Copilot Chat": [[{"requesterUsername": "a", "responderUsername": "b", "requests": []}]],
    "Copilot CLI before it wrote events.jsonl": [[{"sessionId": "s", "chatMessages": [], "timeline": []}]],
    "OpenCode's storage folder (export it with `opencode export`)": [
        [{"id": "msg_1", "sessionID": "ses_1", "role": "user"}],
        [{"id": "prt_1", "sessionID": "ses_1", "messageID": "msg_1", "type": "text", "text": "go"}],
    ],
    "Gemini's API (a checkpoint of Gemini CLI, perhaps)": [[{"role": "user", "parts": [{"text": "go"}]}]],
    "claude.ai": [[{"uuid": "1", "name": "x", "chat_messages": []}]],
    "ChatGPT": [[{"title": "x", "mapping": {}, "current_node": "n"}]],
}


@pytest.mark.parametrize(("agent", "objects"), [(agent, rows) for agent, some in OF_OTHERS.items() for rows in some])
def test_another_agents_session_is_refused_by_name(
    agent: str, objects: list[Any], write_jsonl: Callable[..., Path]
) -> None:
    path = write_jsonl("x.jsonl", objects)
    with pytest.raises(DataError) as caught:
        read_source(resolve_source(str(path)))
    assert str(caught.value) == f"x.jsonl is a session of {agent}, which is not read: give sessions of {NAMES}."


def test_every_signature_has_its_session_here() -> None:
    assert sorted(OF_OTHERS) == sorted(SIGNATURES)


def test_sessions_that_are_read_are_nobody_elses() -> None:
    ours = {**SESSIONS, **AGENT_SESSIONS, "claude-code": [line("1", None, "user", result("k", text("1")))]}
    assert [name for name, rows in ours.items() if agent_of(rows)] == []
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert agent_of([{"messages": turns}, {"prompt": "p", "golden_response": ["a"]}]) is None
    assert agent_of([line("1", None, "user", "hi", sessionId="session-1")]) is None
    assert {reader.name for reader in READERS} >= set(AGENT_SESSIONS)


def test_in_a_folder_it_is_counted_and_named_and_the_others_are_read(write_jsonl: Callable[..., Path]) -> None:
    write_jsonl("all/flow.jsonl", IFLOW)
    write_jsonl("all/qwen.jsonl", AGENT_SESSIONS["qwen-code"])
    folder = write_jsonl("all/ours.jsonl", [line("1", None, "user", "hi"), line("2", "1", "assistant", "ho")]).parent
    found = read_source(resolve_source(str(folder)))
    assert [s.metadata["format"] for s in found.sessions] == ["claude-code", "qwen-code"]
    assert found.report.notes["unreadable_files"] == 1
    assert found.report.broken == [
        f"flow.jsonl (flow.jsonl is a session of iFlow, which is not read: give sessions of {NAMES}.)"
    ]


@pytest.mark.parametrize("value", [None, 7, "x", [], {}, ["x"], {"a": [{}]}])
def test_no_value_makes_a_signature_fail(value: Any) -> None:
    keys = {key for some in OF_OTHERS.values() for rows in some for row in rows for key in row}
    agent_of([{key: value} for key in keys])
    for some in OF_OTHERS.values():
        for rows in some:
            agent_of([{**row, key: value} for row in rows for key in row])
