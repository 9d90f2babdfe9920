from __future__ import annotations

import builtins
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdft_cli.errors import DataError, MachineError
from sdft_cli.records import Message, Session, ToolCall
from sdft_cli.traces.agents.teich_texts import as_object
from sdft_cli.traces.fields import IMAGE
from sdft_cli.traces.other_agents import OTHER_AGENTS, detect, read_other_agent
from sdft_cli.traces.source import read_file, read_source, resolve_source
from sdft_cli.traces.types import FileSessions
from tests.conftest import SHARED
from tests.datasets import with_tools
from tests.traces.agent_sessions import SESSIONS

WriteLines = Callable[..., Path]
OTHERS = SHARED / "traces" / "other-agents"


@pytest.fixture(autouse=True)
def _needs_teich() -> None:
    pytest.importorskip("teich", reason='other agents need pip install "sdft-cli[traces]"')


def read(path: Path) -> FileSessions:
    found = read_file(path)
    assert found is not None
    return found


def check_calls(session: Session) -> None:
    """Every result follows its call and every call has an id of its own and an object as arguments."""
    open_calls: dict[str, str] = {}
    seen: set[str] = set()
    for message in session.messages:
        for call in message.tool_calls:
            assert call.id not in seen
            assert isinstance(call.parsed_arguments(), dict)
            seen.add(call.id)
            open_calls[call.id] = call.name
        if message.role == "tool":
            assert message.name == open_calls.pop(str(message.tool_call_id))


@pytest.mark.parametrize("agent", sorted(OTHER_AGENTS))
def test_a_session_of_each_agent_is_read_text_for_text(agent: str, write_jsonl: WriteLines) -> None:
    path = write_jsonl(f"{agent}.jsonl", SESSIONS[agent])
    assert detect(SESSIONS[agent]) == agent
    found = read(path)
    (session,) = found.sessions
    check_calls(session)
    assert session.metadata["format"] == agent
    assert sum(found.report.lines.values()) == len(SESSIONS[agent])
    assert found.report.notes["texts_not_converted"] == 0
    name, key = {
        "codex": ("apply_patch", "patch"),
        "cursor": ("Write", "text"),
        "droid": ("Create", "content"),
        "hermes": ("write_file", "text"),
        "openclaw": ("write", "content"),
        "pi": ("write", "content"),
    }[agent]
    (call,) = [c for m in session.messages for c in m.tool_calls if c.name == name]
    assert call.parsed_arguments() == {key: '{"a": 2}'}  # a text that looks like JSON stays a text
    assert [m.reasoning for m in session.messages if m.reasoning] == ["Look first"]
    assert not any("Look first" in m.content for m in session.messages)
    assert session.messages[-1] == Message("assistant", "Done.")
    if agent != "codex":
        assert "  kept indent\n" in [m.content for m in session.messages if m.role == "tool"]


def test_codex_prompts_context_and_lines(write_jsonl: WriteLines) -> None:
    found = read(write_jsonl("c.jsonl", SESSIONS["codex"]))
    (session,) = found.sessions
    assert session.session_id == session.group == "c1"
    assert session.messages == (
        Message("system", "Be exact.\n\n\nNo network."),
        Message("user", "<environment_context>\n  <cwd>/w</cwd>\n"),
        Message("user", "Set a to 2"),
        Message("assistant", "", (ToolCall("k1", "shell", '{"cmd": "cat a.json"}'),), reasoning="Look first"),
        Message("tool", '{"a": 1}\n', tool_call_id="k1", name="shell"),
        Message("assistant", "", (ToolCall("k2", "apply_patch", '{"patch": "{\\"a\\": 2}"}'),)),
        Message("tool", "ok", tool_call_id="k2", name="apply_patch"),
        Message("assistant", "Done."),
    )
    assert session.metadata["models"] == ["gpt-x"]
    assert found.report.lines == {"conversation": 10, "event_msg": 2, "turn_context": 1, "reasoning_without_text": 1}
    assert found.report.notes["joined_system_messages"] == 2


def test_early_codex_sessions_without_envelopes_read_the_same(write_jsonl: WriteLines) -> None:
    old = [x["payload"] for x in SESSIONS["codex"] if x["type"] in ("session_meta", "response_item")]
    old.insert(3, {"record_type": "state"})
    old.append({"type": "web_search_call", "status": "completed", "action": {"query": "q"}})
    found = read(write_jsonl("c.jsonl", old))
    new = read(write_jsonl("d.jsonl", SESSIONS["codex"]))
    assert found.sessions[0].messages == new.sessions[0].messages
    counted = {"conversation": 10, "reasoning_without_text": 1, "unknown_type": 1, "unread_item": 1}
    assert found.report.lines == counted


def test_cursors_own_transcripts_have_no_header(write_jsonl: WriteLines) -> None:
    found = read(write_jsonl("u.jsonl", SESSIONS["cursor"][2:6]))
    assert found.sessions[0].messages == read(write_jsonl("v.jsonl", SESSIONS["cursor"])).sessions[0].messages
    assert found.sessions[0].session_id == "u"
    assert found.report.lines == {"conversation": 4}


def test_tools_are_given_where_the_trace_lists_them(write_jsonl: WriteLines) -> None:
    cursor = read(write_jsonl("u.jsonl", SESSIONS["cursor"])).sessions[0]
    assert [(t.name, t.origin, t.parameters) for t in cursor.tools] == [("Write", "given", '{"type": "object"}')]
    lines = copy.deepcopy(SESSIONS["cursor"])
    lines[3]["message"]["content"][1]["name"] = "Unlisted"
    found = read(write_jsonl("v.jsonl", lines))
    assert [(t.name, t.origin) for t in found.sessions[0].tools] == [("Write", "given"), ("Unlisted", "inferred")]
    assert found.report.notes["tools_called_but_not_listed"] == 1
    assert read(write_jsonl("p.jsonl", SESSIONS["pi"])).sessions[0].tools == ()


def test_text_beside_a_tool_result_and_images_stay(write_jsonl: WriteLines) -> None:
    cursor = read(write_jsonl("u.jsonl", SESSIONS["cursor"])).sessions[0]
    assert [m.role for m in cursor.messages] == ["user", "assistant", "tool", "user", "assistant"]
    assert cursor.messages[3].content == "and hurry"
    found = read(write_jsonl("p.jsonl", SESSIONS["pi"]))
    assert found.sessions[0].messages[0] == Message("user", f"Set a to 2\n{IMAGE}")
    assert found.report.notes["images"] == 1


def test_hermes_system_prompt_and_rewound_messages(write_jsonl: WriteLines) -> None:
    found = read(write_jsonl("h.jsonl", SESSIONS["hermes"]))
    messages = found.sessions[0].messages
    assert messages[0] == Message("system", "Be exact.")
    assert (messages[2].content, messages[2].reasoning) == ("Writing.", "Look first")
    assert "Taken back." not in [m.content for m in messages]
    assert found.report.notes["rewound_messages"] == 1
    assert [r.reason for r in found.report.lost_turns] == ["abandoned_branch"]


def test_hermes_sharegpt_rows_are_sessions_of_their_own(write_jsonl: WriteLines) -> None:
    call = {"name": "write_file", "arguments": {"text": '{"a": 2}'}}
    answer = {"name": "write_file", "tool_call_id": "call_9", "content": "  ok\n"}
    row = {
        "id": "r1",
        "traces": [
            {"from": "system", "value": "Be exact."},
            {"from": "human", "value": "Set a to 2"},
            {"from": "gpt", "value": f"<think>hm</think>Now.\n<tool_call>\n{json.dumps(call)}\n</tool_call>"},
            {"from": "tool", "value": f"<tool_response>\n{json.dumps(answer)}\n</tool_response>"},
            {"from": "gpt", "value": "Done."},
        ],
    }
    found = read(write_jsonl("h.jsonl", [row, {**row, "id": "r2"}]))
    assert [(s.session_id, s.group) for s in found.sessions] == [("r1", "r1"), ("r2", "r2")]
    check_calls(found.sessions[0])
    turn, result = found.sessions[0].messages[2:4]
    assert (turn.content.strip(), turn.reasoning) == ("Now.", "hm")
    assert turn.tool_calls[0].parsed_arguments() == {"text": '{"a": 2}'}
    assert result.content == "  ok\n"
    assert found.report.lines == {"conversation": 2}


def test_a_branch_that_pi_left_is_abandoned_and_a_missing_parent_is_repaired(write_jsonl: WriteLines) -> None:
    lines = copy.deepcopy(SESSIONS["pi"])
    other = {"role": "assistant", "content": [{"type": "text", "text": "Left."}]}
    lines.insert(4, {"type": "message", "id": "x", "parentId": "e1", "message": other})
    found = read(write_jsonl("p.jsonl", lines))
    assert "Left." not in [m.content for m in found.sessions[0].messages]
    assert found.report.lines["abandoned"] == 1
    assert [r.record_id for r in found.report.lost_turns] == ["p1/abandoned-x"]
    broken = [*SESSIONS["pi"][:2], b"{", *SESSIONS["pi"][3:]]
    found = read(write_jsonl("q.jsonl", broken))
    assert found.report.notes["repaired_links"] == 1
    assert found.report.broken == ["q.jsonl:3"]
    assert sum(found.report.lines.values()) == len(broken)


def test_an_id_that_stands_twice_means_the_nearest_line_above(write_jsonl: WriteLines) -> None:
    lines = copy.deepcopy(SESSIONS["pi"])
    for number, (name, parent) in enumerate([("e5", "e4"), ("e3", "e5"), ("e7", "e3")]):
        message = {"role": ("user", "user", "assistant")[number], "content": [{"type": "text", "text": f"t{number}"}]}
        lines.append({"type": "message", "id": name, "parentId": parent, "message": message})
    found = read(write_jsonl("p.jsonl", lines))
    assert [m.content for m in found.sessions[0].messages[-4:]] == ["Done.", "t0", "t1", "t2"]
    assert len(found.sessions[0].messages) == 7
    assert found.report.lines["abandoned"] == 0


def test_what_droid_shows_only_to_its_user_is_left_out_and_named(write_jsonl: WriteLines) -> None:
    lines = copy.deepcopy(SESSIONS["droid"])
    notice = {"role": "user", "visibility": "user_only", "content": [{"type": "text", "text": "cancelled"}]}
    lines.insert(2, {"type": "message", "id": "n", "parentId": "1", "message": notice})
    lines[3]["parentId"] = "n"
    found = read(write_jsonl("d.jsonl", lines))
    assert "cancelled" not in [m.content for m in found.sessions[0].messages]
    assert found.report.lines["user_only"] == 1
    assert found.report.notes["texts_not_converted"] == 0


def test_a_compaction_starts_a_context_with_its_summary_and_what_it_kept(write_jsonl: WriteLines) -> None:
    lines = copy.deepcopy(SESSIONS["pi"])
    lines += [
        {"type": "compaction", "id": "e5", "parentId": "e4", "summary": "So far.", "firstKeptEntryId": "e4"},
        {"type": "message", "id": "e6", "parentId": "e5", "message": {"role": "user", "content": "Next"}},
        {
            "type": "message",
            "id": "e7",
            "parentId": "e6",
            "message": {"role": "assistant", "content": [{"type": "text", "text": "More."}], "stopReason": "aborted"},
        },
    ]
    found = read(write_jsonl("p.jsonl", lines))
    first, second = found.sessions
    assert (first.session_id, second.session_id, second.group) == ("p1", "p1#2", "p1")
    assert first.messages == read(write_jsonl("q.jsonl", SESSIONS["pi"])).sessions[0].messages
    assert [(m.role, m.content, m.status) for m in second.messages] == [
        ("user", "So far.", None),
        ("assistant", "Done.", "repeated"),
        ("user", "Next", None),
        ("assistant", "More.", "interrupted"),
    ]
    assert found.report.lines["compaction"] == 1
    assert sum(found.report.lines.values()) == len(lines)


def item(role: str, text: str) -> dict[str, Any]:
    return {
        "type": "response_item",
        "payload": {"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]},
    }


def test_codex_compaction_and_rollback(write_jsonl: WriteLines) -> None:
    lines = [
        *SESSIONS["codex"],
        item("user", "Wrong question"),
        item("assistant", "Wrong answer"),
        {"type": "event_msg", "payload": {"type": "thread_rolled_back", "num_turns": 1}},
        {"type": "compacted", "payload": {"message": "So far."}},
        item("user", "Next"),
        item("assistant", "More."),
    ]
    found = read(write_jsonl("c.jsonl", lines))
    first, second = found.sessions
    assert first.messages[-1].content == "Done."
    assert [(m.role, m.content) for m in second.messages] == [
        ("system", "Be exact.\n"),
        ("user", "So far."),
        ("user", "Next"),
        ("assistant", "More."),
    ]
    assert found.report.lines["abandoned"] == 2
    assert len(found.report.lost_turns) == 1
    assert sum(found.report.lines.values()) == len(lines)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    user=st.text(min_size=1).filter(str.strip),
    answer=st.text(min_size=1).filter(str.strip),
    value=st.text() | st.dictionaries(st.text(), st.text() | st.integers()),
    agent=st.sampled_from(["pi", "codex", "droid"]),
)
def test_any_text_comes_back_exactly(user: str, answer: str, value: Any, agent: str) -> None:
    lines = copy.deepcopy(SESSIONS[agent])
    if agent == "codex":
        lines[5]["payload"]["content"][0]["text"] = user
        lines[7]["payload"]["arguments"] = json.dumps({"v": value})
        lines[-1]["payload"]["content"][0]["text"] = answer
    else:
        position = 2 if agent == "pi" else 1
        lines[position]["message"]["content"] = user
        key = "arguments" if agent == "pi" else "input"
        lines[position + 1]["message"]["content"][1][key] = {"v": value}
        lines[-1]["message"]["content"][0]["text"] = answer
    found = read_other_agent(Path("x.jsonl"), agent, ((f"x.jsonl:{i}", line) for i, line in enumerate(lines, 1)))
    (session,) = found.sessions
    assert session.messages[-1].content == answer
    assert user in [m.content for m in session.messages if m.role == "user"]
    assert {"v": value} in [c.parsed_arguments() for m in session.messages for c in m.tool_calls]


def test_built_in_tools_of_claude_code_are_not_offered_to_other_agents(write_jsonl: WriteLines) -> None:
    codex = read(write_jsonl("c.jsonl", SESSIONS["codex"])).sessions[0]
    pi = read(write_jsonl("p.jsonl", SESSIONS["pi"])).sessions[0]
    quiet = Session("quiet", pi.messages[:1], group="quiet", metadata={"format": "pi"})
    mcp = (ToolCall("1", "mcp__x__y", "{}"), ToolCall("2", "Read", "{}"))
    other = Session("o", (Message("assistant", "", mcp),), group="o", metadata={"format": "pi"})
    ours = Session("a", (Message("assistant", "", mcp[1:]),), group="a", metadata={"format": "claude-code"})
    for every in (False, True):
        found = with_tools([codex, pi, quiet, other, ours], every_builtin=every)
        names = [[t.name for t in s.tools] for s in found[:4]]
        assert names == [["apply_patch", "shell"], ["Read", "write"], ["Read", "write"], ["Read", "write", "mcp__x__y"]]
        assert {t.origin for s in found[:4] for t in s.tools} == {"inferred"}
        assert {t.origin for t in found[4].tools} == {"declared"}


def test_without_teich_the_error_names_the_format_and_the_extra(
    write_jsonl: WriteLines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl("d/c.jsonl", SESSIONS["codex"])
    real = builtins.__import__

    def without_teich(name: str, *arguments: Any, **options: Any) -> Any:
        if name.split(".")[0] == "teich":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_teich)
    with pytest.raises(MachineError) as caught:
        read_source(resolve_source(str(tmp_path / "d")))
    assert str(caught.value) == "A session of Codex needs teich, which is not installed: pip install 'sdft-cli[traces]'"
    write_jsonl("d/m.jsonl", [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}])
    found = read_source(resolve_source(str(tmp_path / "d")))
    assert len(found.sessions) == 1
    assert found.report.notes["unreadable_files"] == 1
    assert found.report.broken == [f"c.jsonl ({caught.value})"]


def test_a_damaged_session_is_an_error_that_names_file_and_agent(write_jsonl: WriteLines) -> None:
    lines = copy.deepcopy(SESSIONS["droid"])
    lines[2]["message"]["content"][1]["name"] = ["no", "name"]
    lines[0]["id"] = 7
    lines[1]["message"]["content"] = 5
    with pytest.raises(DataError, match=r"No session with an assistant turn|looks like a session of Droid"):
        read_source(resolve_source(str(write_jsonl("d.jsonl", [lines[0], lines[1]]))))
    header = {"type": "session_meta", "payload": {"id": "c", "tools": [{"name": "x", "parameters": 3}]}}
    call = {"type": "function_call", "name": "f", "call_id": "k", "arguments": "{not json"}
    found = read(write_jsonl("c.jsonl", [header, item("user", "q"), {"type": "response_item", "payload": call}]))
    assert found.report.notes["non_object_arguments"] == 1
    assert found.sessions[0].messages[-1].tool_calls == (ToolCall("k", "f", "{}"),)


@pytest.mark.parametrize(
    ("name", "roles", "calls", "lines"),
    [
        ("codex", {"system": 1, "user": 2, "assistant": 14, "tool": 18}, 18, 95),
        ("cursor", {"user": 1, "assistant": 2, "tool": 1}, 1, 7),
        ("droid", {"user": 11, "assistant": 28, "tool": 21}, 22, 65),
        ("hermes", {"system": 1, "user": 5, "assistant": 5, "tool": 1}, 1, 1),
        ("openclaw", {"user": 2, "assistant": 1}, 0, 8),
        ("pi", {"user": 19, "assistant": 156, "tool": 144}, 144, 325),
    ],
)
def test_real_sessions_are_read_in_full(name: str, roles: dict[str, int], calls: int, lines: int) -> None:
    path = OTHERS / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip("no ../shared/traces here: real sessions are not part of the repository")
    found = read(path)
    (session,) = found.sessions
    check_calls(session)
    assert {role: sum(m.role == role for m in session.messages) for role in roles} == roles
    assert sum(len(m.tool_calls) for m in session.messages) == calls
    assert sum(found.report.lines.values()) == lines
    assert found.report.notes["texts_not_converted"] == found.report.notes["orphan_tool_results"] == 0
    # every text of the session stands in the file, exactly: decoded from JSON, so neither stripped nor parsed
    texts = set(_strings([json.loads(line) for line in path.read_bytes().splitlines()]))
    for message in session.messages:
        if message.role in ("user", "tool"):
            assert message.content in texts


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    blocks = [item for item in items if isinstance(item, dict)]
    joined = "\n".join(IMAGE if b.get("type") == "image" else str(b.get("text") or "") for b in blocks)
    return [joined, *(text for item in items for text in _strings(item))]


def test_a_claude_code_file_with_tool_search_is_read_by_our_own_reader() -> None:
    path = OTHERS / "claude_code_with_tool_search.jsonl"
    if not path.is_file():
        pytest.skip("no ../shared/traces here: real sessions are not part of the repository")
    found = read(path)
    (session,) = found.sessions
    assert session.metadata["format"] == "claude-code"
    assert sum(m.role == "tool" for m in session.messages) == sum(len(m.tool_calls) for m in session.messages) == 13
    assert sum(found.report.lines.values()) == 35


def test_arguments_that_spell_a_lone_surrogate_can_be_written() -> None:
    assert as_object(r'{"a": "\ud83d"}') == {"a": "\ufffd"}
    assert as_object("[" * 100_000) is None
