"""What a look at the places where agents keep sessions counts, and what it does not choke on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sdft_cli.traces import stores
from sdft_cli.traces.examples import write_examples
from sdft_cli.traces.source import read_source, resolve_source
from sdft_cli.traces.stores import exported_stores, find_stores, look


def test_claude_codes_files_are_counted_as_they_are_read(tmp_path: Path) -> None:
    write_examples(tmp_path, 12)
    found = look("Claude Code", tmp_path, "**/*.jsonl")
    read = read_source(resolve_source(str(tmp_path)), every_branch=True).sessions
    assert (found.files, found.sessions, found.turns) == (12, 12, sum(len(s.assistant_turns()) for s in read))
    assert found.looked_bytes == found.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert len(found.versions) == 1
    assert found.problem == ""


def test_tokens_versions_and_days_are_those_of_the_lines(tmp_path: Path, write_jsonl: Callable[..., Path]) -> None:
    def line(name: str, written: object, version: object = "2.1.9", day: str = "2026-01-02") -> dict[str, object]:
        usage = {"input_tokens": 3, "cache_read_input_tokens": 40, "output_tokens": written}
        message = {"id": name, "content": [{"type": "text", "text": "x"}], "usage": usage}
        return {"type": "assistant", "sessionId": "s", "version": version, "timestamp": f"{day}T1", "message": message}

    write_jsonl(
        "s/a.jsonl",
        [
            line("m1", 5),
            line("m1", 9, "2.1.10"),  # the same message goes on
            line("m2", True, 7, "2025-12-31"),
            line("m3", -4),
            {"type": "user", "message": "text", "timestamp": "2027-01-01T0"},  # another agent's line
            b"\xff{",
            b"[" * 10_000,
            {"type": "assistant", "message": {"id": [1], "usage": 3}},
            {"type": "assistant", "message": {"id": "m4", "model": "<synthetic>"}},
        ],
    )
    found = look("Claude Code", tmp_path / "s", "**/*.jsonl")
    assert (found.turns, found.output_tokens, found.longest_prompt) == (4, 9, 43)
    assert sorted(found.versions) == ["2.1.10", "2.1.9"]
    assert found.dates == {"2025-12-31", "2026-01-02"}


def test_a_look_ends_at_its_bound_with_the_newest_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_examples(tmp_path, 12)
    files = sorted(tmp_path.iterdir())
    for age, path in enumerate(files):
        os.utime(path, (2_000_000_000 - age, 2_000_000_000 - age))
    monkeypatch.setattr(stores, "MOST_BYTES", files[0].stat().st_size + 1)
    found = look("Claude Code", tmp_path, "**/*.jsonl")
    assert (found.files, found.looked_files, found.sessions) == (12, 2, 1)
    assert found.looked_bytes < found.bytes


def test_stores_are_found_below_home_and_where_a_variable_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_jsonl: Callable[..., Path]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CLAUDE_CONFIG_DIR", raising=False)
    assert find_stores() == []
    write_examples(tmp_path / "home" / ".claude" / "projects" / "-p", 2)
    write_examples(tmp_path / "other" / "projects", 4)
    rows = [
        {"sessionId": "g", "projectHash": "h", "startTime": "2026-01-01T00:00:00Z"},
        {"id": "1", "type": "user", "content": "hi"},
        {"id": "2", "type": "gemini", "content": "hello", "tokens": {}},
    ]
    write_jsonl("home/.gemini/tmp/h/chats/session-1.jsonl", rows)
    write_jsonl("home/.gemini/tmp/h/logs.jsonl", rows)  # no session
    (tmp_path / "home" / ".local" / "share" / "opencode").mkdir(parents=True)
    assert [(one.agent, one.files, one.turns > 0) for one in find_stores()] == [
        ("Claude Code", 2, True),
        ("Gemini CLI", 1, True),
    ]
    assert [agent for agent, _, _ in exported_stores()] == ["OpenCode"]
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(tmp_path / "other"))
    assert [one.files for one in find_stores()] == [4, 2, 1]
