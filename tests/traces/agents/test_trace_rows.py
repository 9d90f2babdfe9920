from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from sdft_cli.errors import DataError
from sdft_cli.traces.source import read_file, read_source, resolve_source
from sdft_cli.traces.types import FileSessions
from tests.traces.agents.sessions import AGENT_SESSIONS
from tests.traces.agents.test_unread import IFLOW
from tests.traces.lines import call, line, result, text

CLAUDE = [
    line("1", None, "user", text("go")),
    line("2", "1", "assistant", call("k", "Read", file_path="a"), mid="m"),
    line("3", "2", "user", result("k", "1")),
    line("4", "3", "assistant", text("done")),
    line("5", None, "user", text("afresh")),
    line("6", "5", "assistant", text("anew")),
]


def read(path: Path) -> FileSessions:
    found = read_file(path)
    assert found is not None
    return found


def told(found: FileSessions) -> list[list[str]]:
    return [[m.content for m in s.messages] for s in found.sessions]


SHAPES: dict[str, Callable[[list[Any]], Any]] = {
    "objects": lambda lines: lines,
    "texts": lambda lines: [json.dumps(x) for x in lines],
    "one text": json.dumps,
    "one text of lines": lambda lines: "".join(f"{json.dumps(x)}\n" for x in lines),
}


@pytest.mark.parametrize("column", ["traces", "trace", "loglines"])
@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_a_row_is_the_file_that_it_was(column: str, shape: str, write_jsonl: Callable[..., Path]) -> None:
    expected = read(write_jsonl("s.jsonl", CLAUDE))
    row = {"harness": "claude_code", "session_id": "s", column: SHAPES[shape](CLAUDE), "file_path": "sessions/s.jsonl"}
    found = read(write_jsonl("rows.jsonl", [row]))
    assert list(found.sessions) == list(expected.sessions)
    assert found.report.lines == expected.report.lines
    assert found.report.lost_turns == expected.report.lost_turns


def test_parquet_rows_of_several_agents(tmp_path: Path) -> None:
    sessions = [CLAUDE, AGENT_SESSIONS["qwen-code"], AGENT_SESSIONS["copilot-cli"]]
    rows = [{"harness": "x", "session_id": None, "traces": [json.dumps(x) for x in lines]} for lines in sessions]
    pl.DataFrame(rows).write_parquet(tmp_path / "rows.parquet")
    found = read(tmp_path / "rows.parquet")
    assert [s.metadata["format"] for s in found.sessions] == ["claude-code", "claude-code", "qwen-code", "copilot-cli"]
    assert [s.metadata["file"] for s in found.sessions] == ["row-0.jsonl", "row-0.jsonl", "row-1.jsonl", "row-2.jsonl"]
    assert sum(found.report.lines.values()) == sum(len(lines) for lines in sessions)


@pytest.mark.parametrize("name", sorted(AGENT_SESSIONS))
def test_a_row_may_hold_a_session_of_any_agent(name: str, write_jsonl: Callable[..., Path]) -> None:
    lines = AGENT_SESSIONS[name]
    value = lines[0] if len(lines) == 1 else lines
    expected = read(write_jsonl("s.jsonl", lines)).sessions[0]
    for number, trace in enumerate((value, json.dumps(value))):
        (session,) = read(write_jsonl(f"rows{number}.jsonl", [{"trace": trace, "session_id": "s"}])).sessions
        assert session.messages == expected.messages
        assert session.metadata["format"] == name


def test_a_table_that_drops_nulls_keeps_the_roots_of_a_tree(tmp_path: Path) -> None:
    lines = [
        {k: v for k, v in x.items() if k in ("uuid", "parentUuid", "type", "sessionId", "message")} for x in CLAUDE
    ]
    plain = [{**x, "message": {"role": x["type"], "content": x["uuid"]}} for x in lines]
    pl.DataFrame({"traces": [plain]}).write_parquet(tmp_path / "rows.parquet")
    assert told(read(tmp_path / "rows.parquet")) == [["1", "2", "3", "4"], ["5", "6"]]


def test_rows_that_are_not_read_are_named_and_the_others_are_read(write_jsonl: Callable[..., Path]) -> None:
    rows = [
        {"traces": CLAUDE[:2]},
        {"traces": IFLOW, "file_path": "flow.jsonl"},
        {"traces": []},
        {"traces": [{"type": "nothing known"}]},
        b"{",
        {"traces": [{"traces": CLAUDE}]},
        {"traces": [5, *CLAUDE[4:]], "session_id": "../../etc/\0x"},
    ]
    found = read(write_jsonl("rows.jsonl", rows))
    assert told(found) == [["go", ""], ["afresh", "anew"]]
    assert [name.split(" ", 1)[0] for name in found.report.broken] == [
        *("rows.jsonl:2", "rows.jsonl:3", "rows.jsonl:4", "rows.jsonl:5", "rows.jsonl:6", "x.jsonl:1"),
    ]
    assert found.report.broken[0].startswith("rows.jsonl:2 (flow.jsonl is a session of iFlow, which is not read")
    assert found.report.broken[1] == "rows.jsonl:3 (no lines of a session)"
    assert found.report.lines["broken"] == 6


def test_a_table_of_which_no_row_is_read_is_refused_with_the_reason(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl("rows.jsonl", [{"traces": IFLOW, "session_id": "flow"}, {"traces": []}])
    with pytest.raises(DataError, match=r"^flow\.jsonl is a session of iFlow, which is not read"):
        read_source(resolve_source(str(path)))


def test_a_resumed_session_in_another_row_counts_its_turns_once(write_jsonl: Callable[..., Path]) -> None:
    more = [*CLAUDE[4:], line("7", "6", "user", text("more")), line("8", "7", "assistant", text("yes"))]
    resumed = [{**x, "sessionId": "later"} for x in more]
    found = read_source(resolve_source(str(write_jsonl("rows.jsonl", [{"trace": CLAUDE}, {"trace": resumed}]))))
    assert sum(len(s.assistant_turns()) for s in found.sessions) == 4
    assert len({s.group for s in found.sessions}) == 1
