"""What holds for every format: the same session reads the same, and nothing in a file can make a reader fail."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdft_cli.errors import DataError
from sdft_cli.records import Message, ToolCall
from sdft_cli.traces.source import read_file
from sdft_cli.traces.types import FileSessions
from tests.traces.agents.sessions import AGENT_SESSIONS

WriteLines = Callable[..., Path]
PROMPTS = {"copilot-cli": "<t>now</t>\nWhat is in a?"}
WITH_SYSTEM = ("copilot-cli", "sts", "atif")
LINES = {
    "qwen-code": {"conversation": 4, "system": 1},
    "gemini-cli": {"conversation": 3, "metadata": 2, "replaced": 1, "notice": 1},
    "copilot-cli": {"conversation": 5, "event": 3},
    "sts": {"conversation": 5, "session": 1},
    "opencode": {"conversation": 1},
    "atif": {"conversation": 1},
}
ROWWISE = ("opencode", "atif")


def read(path: Path) -> FileSessions:
    found = read_file(path)
    assert found is not None
    return found


@pytest.mark.parametrize("name", sorted(AGENT_SESSIONS))
def test_a_session_of_each_format_is_read_text_for_text(name: str, write_jsonl: WriteLines) -> None:
    found = read(write_jsonl("x.jsonl", AGENT_SESSIONS[name]))
    (session,) = found.sessions
    assert session.messages == (
        *((Message("system", "Be exact."),) if name in WITH_SYSTEM else ()),
        Message("user", PROMPTS.get(name, "What is in a?")),
        Message(
            "assistant",
            "",
            (ToolCall("k1", "read", '{"path": "a"}'),),
            reasoning="Look\nfirst" if name == "gemini-cli" else "Look first",
        ),
        Message("tool", "  1\n", tool_call_id="k1", name="read"),
        Message("assistant", "A one."),
    )
    assert (session.metadata["format"], session.metadata["models"]) == (name, ["m"])
    assert session.session_id == session.group == {"opencode": "ses_1"}.get(name, name[0])
    assert found.report.lines == LINES[name]
    assert sum(found.report.lines.values()) == len(AGENT_SESSIONS[name])
    assert +found.report.notes == {}


@pytest.mark.parametrize("name", sorted(AGENT_SESSIONS))
def test_each_is_read_from_a_json_document_too(name: str, write_jsonl: WriteLines, tmp_path: Path) -> None:
    document = tmp_path / "x.json"
    document.write_text(json.dumps(AGENT_SESSIONS[name], indent=1))
    from_lines = read(write_jsonl("x.jsonl", AGENT_SESSIONS[name]))
    found = read(document)
    assert [s.messages for s in found.sessions] == [s.messages for s in from_lines.sessions]
    assert found.report.lines == from_lines.report.lines
    assert found.report.fates == from_lines.report.fates


@pytest.mark.parametrize("name", sorted(set(AGENT_SESSIONS) - set(ROWWISE)))
def test_every_line_has_one_fate_and_broken_ones_are_named(name: str, write_jsonl: WriteLines) -> None:
    lines = [*AGENT_SESSIONS[name], b"{", b"", {"type": "from the future"}, b"[1]"]
    found = read(write_jsonl("x.jsonl", lines))
    size = len(AGENT_SESSIONS[name])
    assert sorted(found.report.fates) == [*range(1, size + 2), size + 3, size + 4]
    assert found.report.broken == [f"x.jsonl:{size + 1}", f"x.jsonl:{size + 4}"]
    assert found.report.lines["broken"] == 2
    assert found.report.fates[size + 3] == "unknown_type"


ODD = st.none() | st.booleans() | st.integers() | st.text(max_size=3)
VALUES = st.recursive(
    ODD, lambda v: st.lists(v, max_size=2) | st.dictionaries(st.text(max_size=3), v, max_size=2), max_leaves=4
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(inner for key, item in items for inner in places(item, (*path, key)))]


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    changed = copy.copy(value)
    changed[path[0]] = put(value[path[0]], path[1:], new)
    return changed


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from(sorted(AGENT_SESSIONS)))
def test_a_value_of_any_kind_anywhere_is_counted_or_refused(data: st.DataObject, name: str, tmp_path: Path) -> None:
    """Whatever stands in place of a value: no traceback, one fate per line, and every call of a result there."""
    lines = AGENT_SESSIONS[name]
    where = data.draw(st.sampled_from([p for p in places(lines) if p]))
    changed = put(lines, where, data.draw(VALUES))
    path = tmp_path / "x.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in changed))
    try:
        found = read_file(path)
    except DataError:
        return
    if found is None:
        return
    assert sum(found.report.lines.values()) == len(changed)
    for session in found.sessions:
        calls = {call.id for message in session.messages for call in message.tool_calls}
        assert {m.tool_call_id for m in session.messages if m.role == "tool"} <= calls
        assert all(isinstance(call.parsed_arguments(), dict) for m in session.messages for call in m.tool_calls)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(min_size=1).filter(str.strip), name=st.sampled_from(sorted(AGENT_SESSIONS)))
def test_any_text_comes_back_exactly(text: str, name: str, tmp_path: Path) -> None:
    changed = json.loads(
        json.dumps(AGENT_SESSIONS[name]).replace('"  1\\n"', json.dumps(text)).replace('"A one."', json.dumps(text))
    )
    path = tmp_path / "x.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in changed))
    (session,) = read(path).sessions
    assert [m.content for m in session.messages[-2:]] == [text, text]
