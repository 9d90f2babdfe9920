from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from sdft_cli.traces.claude_code import read_claude_code
from sdft_cli.traces.examples import write_examples
from tests.traces.lines import call, line, result, text

Write = Callable[..., Path]


def shape(messages: object) -> list[tuple[str, str]]:
    """Role and content, with calls as `name(id)`."""
    return [(m.role, m.content + "".join(f"{c.name}({c.id})" for c in m.tool_calls)) for m in messages]  # type: ignore[attr-defined]


def test_lines_of_one_message_are_one_turn_and_reasoning_is_apart(write_jsonl: Write) -> None:
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", None, "user", "hello"),
            line("2", "1", "assistant", [{"type": "thinking", "thinking": "hm"}], mid="m"),
            line("3", "2", "assistant", text("I look."), mid="m"),
            line("4", "3", "assistant", call("c", file_path="a"), mid="m"),
            line("5", "4", "user", result("c", "body")),
            line("6", "5", "assistant", text("done"), mid="n"),
        ],
    )
    found = read_claude_code(path)
    (session,) = found.sessions
    assert shape(session.messages) == [
        ("user", "hello"),
        ("assistant", "I look.Read(c)"),
        ("tool", "body"),
        ("assistant", "done"),
    ]
    assert session.messages[1].reasoning == "hm"
    assert session.messages[1].tool_calls[0].arguments == '{"file_path": "a"}'
    assert (session.messages[2].name, session.messages[2].tool_call_id) == ("Read", "c")
    assert found.report.lines == {"conversation": 6}


def test_parallel_calls_are_no_fork_and_results_follow_the_order_of_calls(write_jsonl: Write) -> None:
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", None, "user", "both"),
            line("2", "1", "assistant", call("a"), mid="m"),
            line("3", "2", "assistant", call("b"), mid="m"),
            line("4", "3", "user", result("b", "B")),
            line("5", "2", "user", result("a", "A")),
            line("6", "4", "assistant", text("done"), mid="n"),
        ],
    )
    found = read_claude_code(path)
    assert shape(found.sessions[0].messages) == [
        ("user", "both"),
        ("assistant", "Read(a)Read(b)"),
        ("tool", "A"),
        ("tool", "B"),
        ("assistant", "done"),
    ]
    assert found.report.lost_turns == []
    assert found.report.lines == {"conversation": 6}


def test_call_written_after_the_result_of_its_sibling_belongs_to_the_same_turn(write_jsonl: Write) -> None:
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", None, "user", "both"),
            line("2", "1", "assistant", call("a"), mid="m"),
            line("3", "2", "user", result("a", "A")),
            line("4", "3", "assistant", call("b"), mid="m"),
            line("5", "4", "user", result("b", "B")),
            line("6", "5", "assistant", text("done"), mid="n"),
        ],
    )
    assert [role for role, _ in shape(read_claude_code(path).sessions[0].messages)] == [
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
    ]


def test_fork_keeps_the_path_that_the_session_ends_on(write_jsonl: Write) -> None:
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", None, "user", "start"),
            line("2", "1", "assistant", text("ready"), mid="m1"),
            line("3", "2", "user", "first try"),
            line("4", "3", "assistant", text("wrong"), mid="m2"),
            line("5", "2", "user", "second try"),
            line("6", "5", "assistant", text("right"), mid="m3"),
        ],
    )
    found = read_claude_code(path)
    assert [content for _, content in shape(found.sessions[0].messages)] == ["start", "ready", "second try", "right"]
    assert [(r.record_id, r.reason) for r in found.report.lost_turns] == [("s/abandoned-m2", "abandoned_branch")]
    assert found.report.lines == {"conversation": 4, "abandoned": 2}


def test_compaction_starts_a_new_context_from_its_summary(write_jsonl: Write) -> None:
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", None, "user", "start"),
            line("2", "1", "assistant", text("before"), mid="m1"),
            line("3", None, "system", None, subtype="compact_boundary", logicalParentUuid="2"),
            line("4", "3", "user", "summary of it all", isCompactSummary=True),
            line("5", "4", "assistant", text("after"), mid="m2"),
        ],
    )
    first, second = read_claude_code(path).sessions
    assert (first.session_id, second.session_id) == ("s", "s#2")
    assert first.group == second.group == "s"
    assert [content for _, content in shape(first.messages)] == ["start", "before"]
    assert [content for _, content in shape(second.messages)] == ["summary of it all", "after"]


def test_what_is_not_conversation_is_transparent_and_counted(write_jsonl: Write) -> None:
    path = write_jsonl(
        "s.jsonl",
        [
            {"type": "file-history-snapshot", "messageId": "x", "snapshot": {}},
            {"type": "summary", "summary": "about", "leafUuid": "6"},
            line("1", None, "user", "<local-command-caveat>Caveat</local-command-caveat>", isMeta=True),
            line("2", "1", "user", "<command-name>/model</command-name>"),
            line("3", "2", "user", "<local-command-stdout>ok</local-command-stdout>"),
            line("4", "3", "user", "hi"),
            line("5", "4", "progress", None, data={"type": "hook_progress"}),
            line("6", "5", "assistant", text("hello"), mid="m"),
            line("7", "6", "system", None, subtype="stop_hook_summary"),
            line("8", "7", "system", None, subtype="turn_duration"),
            {"type": "queue-operation", "operation": "remove", "sessionId": "s"},
            {"type": "brand-new-thing", "sessionId": "s"},
            b'{"type": "user", "uuid": "9", "mess',
            b"[1, 2]",
        ],
    )
    found = read_claude_code(path)
    assert shape(found.sessions[0].messages) == [("user", "hi"), ("assistant", "hello")]
    assert found.report.lines == {
        "snapshot": 1,
        "summary": 1,
        "meta": 1,
        "command_echo": 1,
        "local_command": 1,
        "conversation": 2,
        "progress": 1,
        "hook_summary": 1,
        "system": 1,
        "queue": 1,
        "unknown_type": 1,
        "broken": 2,
    }
    assert found.report.broken == ["s.jsonl:13", "s.jsonl:14"]


def test_prompt_behind_a_slash_command_is_kept(write_jsonl: Write) -> None:
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", None, "user", "<command-message>pr</command-message>\n<command-name>/pr</command-name>"),
            line("2", "1", "user", text("Write a PR description."), isMeta=True),
            line("3", "2", "assistant", text("Here it is."), mid="m"),
        ],
    )
    assert shape(read_claude_code(path).sessions[0].messages) == [
        ("user", "Write a PR description."),
        ("assistant", "Here it is."),
    ]


def test_sidechains_are_sessions_of_their_own_in_the_same_group(write_jsonl: Write) -> None:
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", None, "user", "main"),
            line("a", None, "user", "sub task", isSidechain=True, agentId="x1"),
            line("b", "a", "assistant", text("sub answer"), mid="m2", isSidechain=True, agentId="x1"),
            line("2", "1", "assistant", text("main answer"), mid="m1"),
        ],
    )
    sessions = {s.session_id: s for s in read_claude_code(path).sessions}
    assert set(sessions) == {"s", "s/agent-x1"}
    assert {s.group for s in sessions.values()} == {"s"}
    assert [c for _, c in shape(sessions["s"].messages)] == ["main", "main answer"]
    assert [c for _, c in shape(sessions["s/agent-x1"].messages)] == ["sub task", "sub answer"]


def test_a_broken_parent_is_repaired_by_the_order_of_lines(write_jsonl: Write) -> None:
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", None, "user", "one"),
            line("2", "1", "assistant", text("two"), mid="m1"),
            b'{"uuid": "3", "broken',
            line("4", "3", "assistant", text("four"), mid="m2"),
        ],
    )
    found = read_claude_code(path)
    assert [c for _, c in shape(found.sessions[0].messages)] == ["one", "two", "four"]
    assert found.report.notes["repaired_links"] == 1


def test_the_same_uuid_twice_is_one_line_and_cycles_do_not_hang(write_jsonl: Write) -> None:
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", "2", "user", "one"),
            line("2", "1", "assistant", text("two"), mid="m1"),
            line("2", "1", "assistant", text("two"), mid="m1"),
        ],
    )
    found = read_claude_code(path)
    assert [c for _, c in shape(found.sessions[0].messages)] == ["one", "two"]
    assert found.report.lines == {"conversation": 2, "duplicate": 1}


def test_errors_and_synthetic_turns_are_marked(write_jsonl: Write) -> None:
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", None, "user", "hi"),
            line("2", "1", "assistant", text("API Error: 500"), mid="e", model="<synthetic>", isApiErrorMessage=True),
            line("3", "2", "assistant", text("No response requested."), mid="f", model="<synthetic>"),
            line("4", "3", "assistant", text("yes"), mid="g", model="claude"),
        ],
    )
    assert [m.status for m in read_claude_code(path).sessions[0].messages] == [None, "api_error", "synthetic", None]


def test_images_become_a_counted_placeholder(write_jsonl: Write) -> None:
    image = {"type": "image", "source": {"type": "base64", "data": "AAAA"}}
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", None, "user", [*text("look"), image]),
            line("2", "1", "assistant", call("c"), mid="m"),
            line("3", "2", "user", result("c", [image, *text("caption")])),
        ],
    )
    found = read_claude_code(path)
    assert [c for _, c in shape(found.sessions[0].messages)] == ["look\n[image]", "Read(c)", "[image]\ncaption"]
    assert found.report.notes["images"] == 2


def test_every_line_of_the_examples_is_accounted_for(tmp_path: Path) -> None:
    paths = write_examples(tmp_path, 24)
    forks = parallel = 0
    for path in paths:
        found = read_claude_code(path)
        assert sum(found.report.lines.values()) == len(path.read_text().splitlines())
        assert len(found.sessions) == 1
        forks += bool(found.report.lost_turns)
        parallel += any(len(m.tool_calls) > 1 for m in found.sessions[0].messages)
    assert (forks, parallel) == (1, 1)


def test_every_line_of_the_real_sessions_is_accounted_for(shared_sessions: Path) -> None:
    turns = 0
    for path in sorted(shared_sessions.glob("*.jsonl")):
        raw = [x for x in path.read_bytes().split(b"\n") if x.strip()]
        found = read_claude_code(path)
        assert sum(found.report.lines.values()) == len(raw), path.name
        turns += sum(len(s.assistant_turns()) for s in found.sessions) + len(found.report.lost_turns)
    messages = set()
    for path in shared_sessions.glob("*.jsonl"):
        for raw_line in path.read_bytes().split(b"\n"):
            try:
                value = json.loads(raw_line)
            except ValueError:
                continue
            if value.get("type") == "assistant":
                messages.add((path.name, value["message"]["id"]))
    assert turns == len(messages) == 675
