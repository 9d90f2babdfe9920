from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from datasets import Dataset

from sdft_cli.errors import DataError
from sdft_cli.records import Message
from sdft_cli.traces.readers import reader_for
from sdft_cli.traces.source import read_source, resolve_source
from tests.datasets import with_tools

TOOL_USE: dict[str, Any] = {
    "prompt": "Tools: add(a, b)\nQuestion: 1 + 2?",
    "name": "Calculator",
    "instruction": "1 + 2?",
    "golden_answer": [{"Action": "add", "Action_Input": '{"a": 1, "b": 2}'}],
    "golden_response": ["I add them.", 'Action: add\nAction Input: {"a": 1, "b": 2}'],
}
SCIENCE: dict[str, Any] = {
    "messages": [{"role": "system", "content": "Answer A or B."}, {"role": "user", "content": "Is ice water?"}],
    "output_text": "It is.\nA",
}
PROSE = 'I add them.\nAction: add\nAction Input: {"a": 1, "b": 2}'


def write(folder: Path, suffix: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"rows{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == ".json":
        path.write_text(json.dumps(rows))
    elif suffix == ".parquet":
        pl.DataFrame(rows).write_parquet(path)
    else:
        Dataset.from_list(rows).save_to_disk(folder / "saved")
        return folder / "saved"
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".arrow"])
def test_both_shapes_become_one_turn_sessions(tmp_path: Path, suffix: str) -> None:
    tool_use = read_source(resolve_source(str(write(tmp_path, suffix, [TOOL_USE, TOOL_USE]))))
    first, second = tool_use.sessions
    assert first.messages == (Message("user", TOOL_USE["prompt"]), Message("assistant", PROSE))
    assert first.metadata["format"] == "golden"
    assert first.session_id != second.session_id
    assert first.group == second.group  # one prompt, so one side of the split
    assert tool_use.report.lines == {"conversation": 2}
    (tmp_path / "b").mkdir()
    science = read_source(resolve_source(str(write(tmp_path / "b", suffix, [SCIENCE]))))
    assert science.sessions[0].messages == (
        Message("system", "Answer A or B."),
        Message("user", "Is ice water?"),
        Message("assistant", "It is.\nA"),
    )
    assert science.sessions[0].group != first.group
    assert with_tools(science.sessions, every_builtin=True)[0].tools == ()


def test_a_saved_dataset_is_read_without_its_bookkeeping(tmp_path: Path) -> None:
    folder = write(tmp_path, ".arrow", [TOOL_USE])
    (folder / "cache-0123.arrow").write_bytes(b"left by a map")
    source = resolve_source(str(folder))
    assert [p.name for p in source.files] == ["data-00000-of-00001.arrow"]
    assert set(source.ignored) == {"cache-0123.arrow", "dataset_info.json", "state.json"}


def test_a_system_prompt_and_a_plain_answer(write_jsonl: Callable[..., Path]) -> None:
    row = {"id": "r", "system": "Be brief.", "prompt": [{"role": "user", "content": "Hi"}], "golden_response": "Ho"}
    (session,) = read_source(resolve_source(str(write_jsonl("g.jsonl", [row])))).sessions
    assert session.session_id == "r"
    assert session.messages == (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Ho"))


def test_rows_that_cannot_be_used_are_named(write_jsonl: Callable[..., Path]) -> None:
    rows: list[object] = [
        TOOL_USE,
        {"prompt": "eval rows have no answer", "golden_answer": []},
        {**TOOL_USE, "golden_response": ["", " "]},
        {**TOOL_USE, "golden_response": 3},
        {"golden_response": ["x"]},
        {**TOOL_USE, "prompt": " "},
        b"{",
        {"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "golden_response": "c"},
    ]
    found = read_source(resolve_source(str(write_jsonl("g.jsonl", rows))))
    assert found.report.lines == {"conversation": 1, "broken": 7}
    assert found.report.broken == [
        "g.jsonl:2 (neither golden_response nor output_text)",
        "g.jsonl:3 (golden_response is empty)",
        "g.jsonl:4 (golden_response is neither a text nor a list of texts)",
        "g.jsonl:5 (neither messages nor prompt)",
        "g.jsonl:6 (prompt holds no user message)",
        "g.jsonl:7 (not a JSON object)",
        "g.jsonl:8 (prompt already ends in an answer)",
    ]
    bad = write_jsonl("bad.jsonl", [{**TOOL_USE, "golden_response": []}])
    with pytest.raises(DataError, match=r"First problem: bad\.jsonl:1 \(golden_response is empty\)"):
        read_source(resolve_source(str(bad)))


def test_answered_conversations_stay_conversations(write_jsonl: Callable[..., Path]) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    reader = reader_for(write_jsonl("m.jsonl", [{"messages": turns, "output_text": "b"}]))
    assert reader is not None
    assert reader.name == "messages"
