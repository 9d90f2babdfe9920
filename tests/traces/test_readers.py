from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdft_cli.traces.readers import READERS, reader_for
from tests.traces.agent_sessions import SESSIONS
from tests.traces.lines import line

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
FIRST_ROWS: dict[str, list[Any]] = {
    **SESSIONS,
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


def test_claude_code_is_read_line_by_line_only(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(FIRST_ROWS["claude-code"]))
    assert name_of(path) is None
    assert name_of(path, "claude-code") is None


def test_names_are_given_once() -> None:
    names = [reader.name for reader in READERS]
    assert sorted(set(names)) == sorted(names) == sorted(FIRST_ROWS)
