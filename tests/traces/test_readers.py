from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdft_cli.traces.readers import READERS, reader_for
from tests.traces.agent_sessions import SESSIONS
from tests.traces.agents.sessions import AGENT_SESSIONS
from tests.traces.lines import line

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
FIRST_ROWS: dict[str, list[Any]] = {
    **SESSIONS,
    **AGENT_SESSIONS,
    "agent-traces": [{"harness": "claude_code", "traces": [line("1", None, "user", "hi")]}],
    "claude-code": [line("1", None, "user", "hi")],
    "messages": [{"messages": TURNS}],
    "golden": [{"prompt": "p", "golden_response": ["a"]}],
}


def name_of(path: Path, known_format: str | None = None) -> str | None:
    reader = reader_for(path, known_format)
    return reader and reader.name


@pytest.mark.parametrize("name", [reader.name for reader in READERS])
def test_a_file_of_each_format_gets_its_reader(name: str, write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl("x.jsonl", FIRST_ROWS[name])
    assert name_of(path) == name
    assert name_of(path, "messages") == name


def test_a_card_decides_only_what_no_reader_recognises(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl("x.jsonl", [{"hello": "world"}])
    assert name_of(path) is None
    assert name_of(path, "word") is None
    assert name_of(path, "pi") == "pi"


@pytest.mark.parametrize("name", sorted({reader.name for reader in READERS} - {"claude-code"}))
def test_a_card_that_names_claude_code_changes_no_other_reader(name: str, write_jsonl: Callable[..., Path]) -> None:
    assert name_of(write_jsonl("x.jsonl", FIRST_ROWS[name]), "claude-code") == name


def test_claude_code_is_read_from_json_too_but_a_card_makes_no_session_of_settings(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for document in (FIRST_ROWS["claude-code"], {"loglines": FIRST_ROWS["claude-code"]}, FIRST_ROWS["claude-code"][0]):
        path.write_text(json.dumps(document))
        assert name_of(path) == "claude-code"
    path.write_text(json.dumps({"agentType": "explore", "description": "looks around"}))
    assert name_of(path, "claude-code") is None
    assert name_of(path, "messages") == "messages"


def test_a_list_of_prompts_is_no_session_of_claude_code(tmp_path: Path) -> None:
    """As Gemini CLI and iFlow keep it in `logs.json`."""
    path = tmp_path / "logs.json"
    path.write_text(json.dumps([{"sessionId": "g", "messageId": 0, "type": "user", "message": "hi", "timestamp": "t"}]))
    assert name_of(path) is None
    path.write_text(json.dumps([{"sessionId": "g", "type": "user", "message": "hi"}, *FIRST_ROWS["claude-code"]]))
    assert name_of(path) == "claude-code"


def test_names_are_given_once() -> None:
    names = [reader.name for reader in READERS]
    assert sorted(set(names)) == sorted(names) == sorted(FIRST_ROWS)
