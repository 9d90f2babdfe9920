from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from sdft_cli.records import RecordRow, Session
from sdft_cli.records.reasons import Candidate, first_reason
from sdft_cli.traces.claude_code.lines import kind_of_line
from sdft_cli.traces.claude_code.reader import read_claude_code
from sdft_cli.traces.examples import write_examples
from tests.traces.lines import call, line, result, text

Write = Callable[..., Path]


def reason_of(session: Session, turn: int) -> str | None:
    """Return the reason for which a turn is rejected, whatever its length."""
    row = RecordRow("", session.session_id, turn, 0, 0, 0, False)
    caps = {"max_prompt_tokens": 1, "max_rollout_tokens": 1, "max_seq_tokens": 1}
    reason = first_reason(Candidate(session, turn, False, caps, lambda: row))
    return reason and reason.key


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


def test_what_the_model_did_not_see_is_transparent_and_counted(write_jsonl: Write) -> None:
    path = write_jsonl(
        "s.jsonl",
        [
            {"type": "file-history-snapshot", "messageId": "x", "snapshot": {}},
            {"type": "summary", "summary": "about", "leafUuid": "6"},
            line("3", None, "user", "shown on screen only", isVirtual=True),
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
        "virtual": 1,
        "conversation": 2,
        "progress": 1,
        "hook_summary": 1,
        "system": 1,
        "queue": 1,
        "unknown_type": 1,
        "broken": 2,
    }
    assert found.report.broken == ["s.jsonl:11", "s.jsonl:12"]


def test_echoes_and_meta_lines_reach_the_model_as_one_message_of_the_user(write_jsonl: Write) -> None:
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", None, "user", "<local-command-caveat>Caveat</local-command-caveat>", isMeta=True),
            line("2", "1", "user", "<command-name>/compact</command-name>"),
            line("3", "2", "user", "<local-command-stdout>ok</local-command-stdout>"),
            line("4", "3", "user", "<bash-input>ls</bash-input>"),
            line("5", "4", "user", "<bash-stdout>a.py</bash-stdout>"),
            {**line("6", "5", "system", subtype="local_command"), "content": "<local-command-stdout>x</...>"},
            line("7", "6", "user", text("Write a PR description."), isMeta=True),
            line("8", "7", "user", "for screens only?", isVisibleInTranscriptOnly=True),
            line("9", "8", "assistant", text("Here it is."), mid="m"),
        ],
    )
    found = read_claude_code(path)
    assert shape(found.sessions[0].messages) == [
        (
            "user",
            "<local-command-caveat>Caveat</local-command-caveat>\n<command-name>/compact</command-name>\n"
            "<local-command-stdout>ok</local-command-stdout>\n<bash-input>ls</bash-input>\n"
            "<bash-stdout>a.py</bash-stdout>\n<local-command-stdout>x</...>\nWrite a PR description.\n"
            "for screens only?",
        ),
        ("assistant", "Here it is."),
    ]
    assert found.report.lines == {"conversation": 9}


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


def test_api_errors_are_in_no_context_and_synthetic_turns_are_marked(write_jsonl: Write) -> None:
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", None, "user", "hi"),
            line("2", "1", "assistant", text("API Error: 500"), mid="e", model="<synthetic>", isApiErrorMessage=True),
            line("3", "2", "assistant", text("No response requested."), mid="f", model="<synthetic>"),
            line("4", "3", "assistant", text("yes"), mid="g", model="claude"),
        ],
    )
    found = read_claude_code(path)
    assert [(m.content, m.status) for m in found.sessions[0].messages] == [
        ("hi", None),
        ("No response requested.", "synthetic"),
        ("yes", None),
    ]
    assert [(r.record_id, r.turn_index, r.reason) for r in found.report.lost_turns] == [
        ("s/error-2", None, "api_error")
    ]
    assert found.report.lines == {"conversation": 3, "api_error": 1}


@pytest.mark.parametrize(
    "marker",
    [
        [line("4", "3", "user", text("[Request interrupted by user]"))],
        [line("4", "3", "user", text("[Request interrupted by user for tool use]"))],
        [line("3r", "3", "user", result("c", "[Request interrupted by user for tool use]"), is_error=True)],
        [line("4", "3", "user", "stop", interruptedMessageId="m2")],
        [
            line("a", "3", "attachment", attachment={"type": "hook_additional_context", "content": ["by a hook"]}),
            line("4", "a", "user", text("[Request interrupted by user]")),
        ],
    ],
)
def test_a_turn_that_the_user_cut_off_is_no_reference_but_stays_in_the_context(
    write_jsonl: Write, marker: list[dict[str, object]]
) -> None:
    path = write_jsonl(
        "s.jsonl",
        [
            line("0", None, "user", "start"),
            line("1", "0", "assistant", text("fine"), mid="m1"),
            line("2", "1", "user", "go"),
            line("3", "2", "assistant", call("c"), mid="m2"),
            *marker,
            line("5", str(marker[-1]["uuid"]), "user", "differently"),
            line("6", "5", "assistant", text("ok"), mid="m3"),
        ],
    )
    (session,) = read_claude_code(path).sessions
    assert [m.status for m in session.messages if m.role == "assistant"] == [None, "interrupted", None]
    assert reason_of(session, 3) == "interrupted"


REFUSED = (
    "The user doesn't want to proceed with this tool use. The tool use was rejected (eg. if it was a file edit, the "
    "new_string was NOT written to the file). To tell you how to proceed, the user said:\nuse the other file"
)


@pytest.mark.parametrize(
    ("content", "failed", "status"),
    [
        (REFUSED, True, "interrupted"),
        (text(REFUSED), True, "interrupted"),
        (REFUSED, False, None),
        (f"grep: {REFUSED}", True, None),
    ],
)
def test_a_turn_whose_call_was_refused_with_words_is_no_reference(
    write_jsonl: Write, content: object, failed: bool, status: str | None
) -> None:
    refused = [{**result("d", content)[0], "is_error": failed}]
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", None, "user", "hi"),
            line("2", "1", "assistant", call("c"), mid="m1"),
            line("3", "2", "assistant", call("d", "Edit"), mid="m1"),
            line("4", "2", "user", result("c", "body")),
            line("5", "3", "user", refused),
            line("6", "5", "assistant", text("ok"), mid="m2"),
        ],
    )
    (session,) = read_claude_code(path).sessions
    assert [m.status for m in session.messages if m.role == "assistant"] == [status, None]
    assert (reason_of(session, 1) == "interrupted") == (status == "interrupted")
    assert "use the other file" in session.messages[3].content


@pytest.mark.parametrize("name", ["c", ""])
def test_calls_of_one_message_with_the_same_id_are_all_kept(write_jsonl: Write, name: str) -> None:
    first, second = call(name, "Bash", command="a"), call(name, "Read", file_path="/a")
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", None, "user", "hi"),
            line("2", "1", "assistant", [*first, *second], mid="m1", wireToolInputs={name: {"command": "b"}}),
            line("3", "2", "user", result(name, "one")),
            line("4", "3", "user", result(name, "two")),
            line("5", "4", "assistant", [*call("d", "Bash", command="c"), *call("d", "Bash", command="c")], mid="m2"),
            line("6", "5", "user", result("d", "three")),
            line("7", "6", "assistant", text("ok"), mid="m3"),
        ],
    )
    found = read_claude_code(path)
    (session,) = found.sessions
    other = f"{name or 'call'}~2"
    assert [(c.id, c.name, c.arguments) for c in session.messages[1].tool_calls] == [
        (name, "Bash", '{"command": "a"}'),
        (other, "Read", '{"file_path": "/a"}'),
    ]
    results = [(m.tool_call_id, m.name, m.content) for m in session.messages if m.role == "tool"]
    assert results == [(name, "Bash", "one"), (other, "Read", "two"), ("d", "Bash", "three")]
    assert [c.id for c in session.messages[4].tool_calls] == ["d"]
    assert not found.report.notes["unanswered_calls"]
    assert not found.report.notes["repeated_tool_results"]


@pytest.mark.parametrize("reason", ["max_tokens", "model_context_window_exceeded", "refusal", None])
def test_a_turn_that_ran_into_a_limit_is_no_reference(write_jsonl: Write, reason: str | None) -> None:
    answer = [line("2", "1", "assistant", text("half an ans"), mid="m")]
    answer[0]["message"]["stop_reason"] = reason
    if reason is None:  # lines are written before the reason is known: then the error that follows tells
        error = "API Error: Claude's response exceeded the 32000 output token maximum."
        answer.append(line("3", "2", "assistant", text(error), model="<synthetic>", isApiErrorMessage=True))
    last = str(answer[-1]["uuid"])
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", None, "user", "hi"),
            *answer,
            line("4", last, "user", "go on"),
            line("5", "4", "assistant", text("er"), mid="n"),
        ],
    )
    (session,) = read_claude_code(path).sessions
    assert [m.status for m in session.messages] == [None, "truncated", None, None]
    assert reason_of(session, 1) == "truncated"


def test_arguments_that_are_no_object_make_the_turn_no_reference(write_jsonl: Write) -> None:
    deep: object = "x"
    for _ in range(400):
        deep = [deep]
    broken = [{"type": "tool_use", "id": "a", "name": "Read", "input": '{"file_path": "a'}]
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", None, "user", "hi"),
            line("2", "1", "assistant", broken, mid="m"),
            line("3", "2", "assistant", call("b", deep=deep), mid="n"),
        ],
    )
    (session,) = read_claude_code(path).sessions
    assert [m.status for m in session.messages] == [None, "truncated", None]


def test_a_prompt_that_the_running_turn_absorbed_stands_where_the_model_first_saw_it(write_jsonl: Write) -> None:
    def queue(operation: str, **extra: str) -> dict[str, str]:
        return {"type": "queue-operation", "operation": operation, "sessionId": "s", **extra}

    path = write_jsonl(
        "s.jsonl",
        [
            queue("enqueue", content="first"),
            queue("dequeue"),
            line("1", None, "user", "first"),
            queue("enqueue", content="given up"),
            queue("popAll"),
            line("2", "1", "assistant", text("I start."), mid="m"),
            queue("enqueue", content="only this file"),
            queue("remove"),  # Claude Code writes it before the rest of the turn that is running
            line("3", "2", "assistant", call("c"), mid="m"),
            line("4", "3", "user", result("c", "body")),
            line("5", "4", "assistant", text("Understood."), mid="n"),
            queue("enqueue", content="and shorter"),
            line("6", "5", "attachment", attachment={"type": "queued_command", "prompt": "and shorter"}),
            queue("remove", content="and shorter"),
            line("7", "6", "assistant", text("Done."), mid="o"),
        ],
    )
    found = read_claude_code(path)
    assert shape(found.sessions[0].messages) == [
        ("user", "first"),
        ("assistant", "I start.Read(c)"),
        ("tool", "body"),
        ("user", "only this file"),
        ("assistant", "Understood."),
        ("user", "and shorter"),
        ("assistant", "Done."),
    ]
    assert found.report.notes["queued_prompts"] == 1
    assert found.report.lines == {"conversation": 8, "queue": 7}


def test_attachments_that_hold_words_are_shown_and_others_are_counted(write_jsonl: Write) -> None:
    shown = [
        {"type": "file", "filename": "a", "content": {"type": "text", "file": {"filePath": "a", "content": "FILE"}}},
        {"type": "nested_memory", "path": "CLAUDE.md", "content": {"type": "Project", "content": "MEMORY"}},
        {"type": "hook_success", "hookEvent": "SessionStart", "content": "HOOK"},
        {"type": "queued_command", "prompt": [*text("QUEUED"), {"type": "image", "source": {}}]},
    ]
    counted = [
        {"type": "hook_success", "hookEvent": "PostToolUse", "content": "hidden"},
        {"type": "skill_discovery", "content": "hidden"},
        {"type": "hook_additional_context", "content": []},
        {},
    ]
    lines = [line("0", None, "user", "hi")]
    for number, attachment in enumerate([*shown, *counted], start=1):
        lines.append(line(str(number), str(number - 1), "attachment", attachment=attachment))
    lines.append(line("z", "8", "assistant", text("ok"), mid="m"))
    found = read_claude_code(write_jsonl("s.jsonl", lines))
    assert shape(found.sessions[0].messages) == [
        ("user", "hi\na:\nFILE\nCLAUDE.md:\nMEMORY\nHOOK\nQUEUED\n[image]"),
        ("assistant", "ok"),
    ]
    assert found.report.lines == {"conversation": 6, "attachment": 4}


def test_what_a_compaction_kept_stands_behind_the_summary_and_counts_once(write_jsonl: Write) -> None:
    kept = {"headUuid": "3", "anchorUuid": "s", "tailUuid": "4"}
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", None, "user", "one"),
            line("2", "1", "assistant", text("two"), mid="m1"),
            line("3", "2", "user", "three"),
            line("4", "3", "assistant", text("four"), mid="m2"),
            line(
                "b",
                None,
                "system",
                subtype="compact_boundary",
                logicalParentUuid="4",
                compactMetadata={"preservedSegment": kept},
            ),
            line("s", "b", "user", "summary", isCompactSummary=True),
            line("5", "s", "user", "five"),
            line("6", "5", "assistant", text("six"), mid="m3"),
        ],
    )
    found = read_claude_code(path)
    first, second = found.sessions
    assert [c for _, c in shape(first.messages)] == ["one", "two", "three", "four"]
    assert [(m.content, m.status) for m in second.messages] == [
        ("summary\nthree", None),
        ("four", "repeated"),
        ("five", None),
        ("six", None),
    ]
    assert (first.assistant_turns(), second.assistant_turns()) == ([1, 3], [3])
    assert found.report.lines == {"conversation": 7, "boundary": 1}


def test_a_microcompaction_hides_results_from_the_turns_after_it_only(write_jsonl: Write) -> None:
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", None, "user", "one"),
            line("2", "1", "assistant", call("c"), mid="m1"),
            line("3", "2", "user", result("c", "long")),
            line("4", "3", "assistant", text("four"), mid="m2"),
            line(
                "b",
                "4",
                "system",
                subtype="microcompact_boundary",
                microcompactMetadata={"compactedToolIds": ["c"]},
            ),
            line("5", "b", "user", "five"),
            line("6", "5", "assistant", text("six"), mid="m3"),
        ],
    )
    found = read_claude_code(path)
    first, second = found.sessions
    assert [c for _, c in shape(first.messages)] == ["one", "Read(c)", "long", "four"]
    assert [c for _, c in shape(second.messages)] == [
        "one",
        "Read(c)",
        "[Old tool result content cleared]",
        "four",
        "five",
        "six",
    ]
    assert (first.assistant_turns(), second.assistant_turns()) == ([1, 3], [5])
    assert found.report.lines == {"conversation": 6, "microcompact": 1}


def test_a_summary_without_a_boundary_starts_a_context_too(write_jsonl: Write) -> None:
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", None, "user", "one"),
            line("2", "1", "assistant", text("two"), mid="m1"),
            line("3", "2", "user", "summary", isCompactSummary=True),
            line("4", "3", "assistant", text("four"), mid="m2"),
        ],
    )
    assert [[c for _, c in shape(s.messages)] for s in read_claude_code(path).sessions] == [
        ["one", "two"],
        ["summary", "four"],
    ]


def test_results_that_were_stored_elsewhere_read_as_the_model_saw_them(write_jsonl: Write) -> None:
    stub = "<persisted-output>Output too large</persisted-output>"
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", None, "user", "one"),
            line("2", "1", "assistant", call("c"), mid="m1"),
            line("3", "2", "user", result("c", "x" * 9000)),
            line("4", "3", "assistant", text("four"), mid="m2"),
            {"type": "content-replacement", "replacements": [{"toolUseId": "c", "replacement": stub}, 7]},
        ],
    )
    assert read_claude_code(path).sessions[0].messages[2].content == stub


def test_a_server_tool_makes_two_turns_of_one_message(write_jsonl: Write) -> None:
    found = {"type": "web_search_result", "title": "T", "url": "U", "encrypted_content": "?"}
    blocks = [
        *text("I search."),
        {"type": "server_tool_use", "id": "w", "name": "web_search", "input": {"query": "q"}},
        {"type": "web_search_tool_result", "tool_use_id": "w", "content": [found]},
        *text("Found."),
    ]
    path = write_jsonl("s.jsonl", [line("1", None, "user", "hi"), line("2", "1", "assistant", blocks, mid="m")])
    assert shape(read_claude_code(path).sessions[0].messages) == [
        ("user", "hi"),
        ("assistant", "I search.web_search(w)"),
        ("tool", "T\nU"),
        ("assistant", "Found."),
    ]


def test_lines_without_parents_follow_each_other(write_jsonl: Write) -> None:
    """What `claude -p --output-format stream-json` prints has no `parentUuid`, and not always a `uuid`."""
    path = write_jsonl(
        "s.jsonl",
        [
            {"type": "system", "subtype": "init", "session_id": "s", "uuid": "0"},
            {"type": "user", "session_id": "s", "message": {"role": "user", "content": "hi"}},
            {"type": "assistant", "session_id": "s", "uuid": "2", "message": {"id": "m", "content": text("yes")}},
            {
                "type": "user",
                "session_id": "s",
                "parent_tool_use_id": "t",
                "uuid": "3",
                "message": {"role": "user", "content": "sub"},
            },
            {
                "type": "assistant",
                "session_id": "s",
                "parent_tool_use_id": "t",
                "uuid": "4",
                "message": {"id": "n", "content": text("sub yes")},
            },
            {"type": "result", "session_id": "s", "result": "yes"},
        ],
    )
    assert {s.session_id: [c for _, c in shape(s.messages)] for s in read_claude_code(path).sessions} == {
        "s": ["hi", "yes"],
        "s/agent-t": ["sub", "sub yes"],
    }


def test_images_become_a_counted_placeholder(write_jsonl: Write) -> None:
    image = {"type": "image", "source": {"type": "base64", "data": "AAAA"}}
    pdf = {"type": "document", "source": {"type": "base64", "data": "AAAA"}}
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", None, "user", [*text("look"), image, pdf]),
            line("2", "1", "assistant", call("c"), mid="m"),
            line("3", "2", "user", result("c", [image, *text("caption")])),
        ],
    )
    found = read_claude_code(path)
    assert [c for _, c in shape(found.sessions[0].messages)] == [
        "look\n[image]\n[document]",
        "Read(c)",
        "[image]\ncaption",
    ]
    assert (found.report.notes["images"], found.report.notes["documents"]) == (2, 1)


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
    messages = set()
    for path in sorted(shared_sessions.glob("*.jsonl")):
        raw = {n: x for n, x in enumerate(path.read_bytes().split(b"\n"), start=1) if x.strip()}
        found = read_claude_code(path)
        assert set(found.report.fates) == set(raw), path.name
        assert found.report.lines == Counter(found.report.fates.values())
        turns += sum(len(s.assistant_turns()) for s in found.sessions) + len(found.report.lost_turns)
        for number, raw_line in raw.items():
            fate = found.report.fates[number]
            try:
                value = json.loads(raw_line)
            except ValueError:
                assert fate == "broken"
                continue
            if value["type"] in ("assistant", "user"):
                assert fate in ("conversation", "abandoned", "api_error"), (path.name, number, fate)
            if value["type"] == "assistant":
                messages.add((path.name, value["message"]["id"]))
    assert turns == len(messages) == 675


def test_every_line_gets_its_kind_and_every_kind_is_described() -> None:
    said = {"content": "hi"}
    lines = [
        ({"type": "assistant", "message": said}, "assistant"),
        ({"type": "assistant", "message": said, "isApiErrorMessage": True}, "api_error"),
        ({"type": "assistant", "message": said, "isVirtual": True}, "virtual"),
        ({"type": "assistant", "message": {}}, "empty"),
        ({"type": "user", "message": said}, "user"),
        ({"type": "system", "subtype": "local_command", "content": "/clear"}, "user"),
        ({"type": "system", "subtype": "local_command"}, "system"),
        ({"type": "system", "subtype": "compact_boundary"}, "boundary"),
        ({"type": "system", "subtype": "microcompact_boundary"}, "microcompact"),
        ({"type": "system", "subtype": "stop_hook_summary"}, "hook_summary"),
        ({"type": "attachment", "attachment": {"type": "directory", "content": "a b"}}, "user"),
        ({"type": "attachment", "attachment": {"type": "date_change", "content": "a b"}}, "attachment"),
        ({"type": "attachment", "attachment": {"type": "prompt_snapshot"}}, "prompt"),
        ({"type": "user", "message": said, "queueTranscriptOnly": True}, "transcript_only"),
        ({"type": "queue-operation"}, "queue"),
        ({"type": "content-replacement"}, "replacement"),
        ({"type": "file-history-snapshot"}, "snapshot"),
        ({"type": "progress"}, "progress"),
        ({"type": "summary"}, "summary"),
        ({"type": "ai-title"}, "bookkeeping"),
        ({"type": "word"}, "unknown_type"),
        ({}, "unknown_type"),
    ]
    assert [kind_of_line(data) for data, _ in lines] == [kind for _, kind in lines]
    assert set(re.findall(r"`(\w+)`", str(kind_of_line.__doc__))) == {kind for _, kind in lines}
