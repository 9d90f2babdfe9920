"""What current versions record: renderings of attachments, the system prompt and tools, calls as they were sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sdft_cli.records import Message, Session, ToolCall
from sdft_cli.traces.claude_code.attachments import attachment_blocks
from sdft_cli.traces.claude_code.reader import read_claude_code
from tests.datasets import with_tools
from tests.traces.lines import call, line, result, text

Write = Callable[..., Path]


def said(session: Session) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in session.messages]


def attach(uuid: str, parent: str | None, kind: str, rendered: Any = None, **fields: Any) -> dict[str, Any]:
    extra = {} if rendered is None else {"rendered": rendered, "renderedRole": "system"}
    return line(uuid, parent, "attachment", attachment={"type": kind, **fields}, **extra)


def tool(name: str, parameters: Any) -> dict[str, Any]:
    schema = {"name": name, "description": f"Does {name}.", "input_schema": parameters}
    return {"name": name, "description": f"Does {name}.", "schema": schema}


OBJECT = {"type": "object", "properties": {"a": {"type": "string"}}}


def snapshot(uuid: str, parent: str | None, system: Any, *tools: dict[str, Any]) -> dict[str, Any]:
    return attach(uuid, parent, "prompt_snapshot", systemPrompt=system, tools=list(tools), cliPrefix="")


# What an attachment showed.


@pytest.mark.parametrize(
    ("attachment", "shown"),
    [
        ({"type": "directory", "path": "src", "content": "a.py b.py"}, "src:\na.py b.py"),
        ({"type": "file", "filename": "a.py", "content": {"type": "text", "file": {"content": "x"}}}, "a.py:\nx"),
        ({"type": "edited_text_file", "filename": "a.py", "snippet": "3\ty"}, "a.py:\n3\ty"),
        (
            {"type": "selected_lines_in_ide", "filename": "a.py", "lineStart": 3, "lineEnd": 4, "content": "z"},
            "a.py, lines 3 to 4:\nz",
        ),
        (
            {
                "type": "diagnostics",
                "files": [{"uri": "a.py", "diagnostics": [{"message": "unused", "severity": "Hint"}]}],
            },
            "a.py:\nHint: unused",
        ),
        ({"type": "invoked_skills", "skills": [{"name": "deploy", "content": "make ship"}]}, "deploy:\nmake ship"),
        ({"type": "mcp_resource", "uri": "t://1", "content": {"contents": [{"text": "Ticket"}]}}, "t://1:\nTicket"),
        ({"type": "async_hook_response", "response": {"systemMessage": "red"}}, "red"),
        ({"type": "instructions", "files": [{"path": "CLAUDE.md", "content": "rules"}]}, "CLAUDE.md:\nrules"),
        ({"type": "hook_success", "hookEvent": "PostToolUse", "content": "hidden"}, ""),
        ({"type": "environment", "snapshot": {"platform": "linux"}}, ""),
        ({"type": "diagnostics", "files": "none"}, ""),
    ],
)
def test_older_versions_show_the_words_of_an_attachment_behind_its_name(attachment: Any, shown: str) -> None:
    assert "\n".join(b["text"] for b in attachment_blocks({"attachment": attachment})) == shown


def test_what_was_rendered_is_shown_in_the_place_of_the_parts(write_jsonl: Write) -> None:
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", None, "user", "hi"),
            attach("2", "1", "environment", [{"content": "Platform: linux"}], snapshot={}),
            attach("3", "2", "edited_text_file", [{"content": text("a.py was changed: 7")}], snippet="7"),
            attach("4", "3", "file", [], filename="a.py", content={"type": "text", "file": {"content": "not shown"}}),
            attach("5", "4", "directory", 7, path="src", content="a.py"),
            attach("5b", "5", "date", [{"content": "Friday"}, 7, {"content": {}}, *text("a block")]),
            attach("6", "5b", "brand_new", [{"content": "new words"}]),
            attach("7", "6", "brand_new_too"),
            line("8", "7", "assistant", text("ok"), mid="m"),
        ],
    )
    found = read_claude_code(path)
    assert said(found.sessions[0]) == [
        ("user", "hi\nPlatform: linux\na.py was changed: 7\nsrc:\na.py\nFriday\na block\nnew words"),
        ("assistant", "ok"),
    ]
    assert found.report.notes["unreadable_rendered"] == 1 + 2
    assert found.report.unknown == {"attachment type: brand_new_too": 1}
    assert found.report.lines == {"conversation": 7, "attachment": 2}


# The system prompt and the tools.


def test_a_snapshot_is_the_system_prompt_and_the_tools_and_nothing_is_guessed(write_jsonl: Write) -> None:
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", None, "user", "hi"),
            snapshot(
                "2", "1", ["You help.", 7, *text("Be brief.")], tool("Ask", OBJECT), tool("Bad", "?"), {"name": 7}, 7
            ),
            line("3", "2", "assistant", call("c", "Read", a="b"), mid="m"),
        ],
    )
    found = read_claude_code(path)
    (session,) = with_tools(found.sessions)
    assert said(session) == [("system", "You help.\nBe brief."), ("user", "hi"), ("assistant", "")]
    assert [(t.name, t.description, json.loads(t.parameters), t.origin) for t in session.tools] == [
        ("Ask", "Does Ask.", OBJECT, "given")
    ]
    assert found.report.notes["bad_tool_schemas"] == 3
    assert found.report.notes["unreadable_system_prompts"] == 1
    assert found.report.lines == {"conversation": 2, "prompt": 1}


def test_another_prompt_begins_another_session_that_shows_the_turns_before(write_jsonl: Write) -> None:
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", None, "user", "one"),
            snapshot("2", "1", "First."),
            line("3", "2", "assistant", text("two"), mid="m1"),
            snapshot("4", "3", "First."),
            line("5", "4", "user", "three"),
            line("6", "5", "assistant", text("four"), mid="m2"),
            snapshot("7", "6", "Second.", tool("Ask", OBJECT)),
            line("8", "7", "user", "five"),
            line("9", "8", "assistant", text("six"), mid="m3"),
        ],
    )
    first, second = read_claude_code(path).sessions
    assert [m.content for m in first.messages] == ["First.", "one", "two", "three", "four"]
    assert [m.content for m in second.messages] == ["Second.", "one", "two", "three", "four", "five", "six"]
    assert (first.assistant_turns(), second.assistant_turns()) == ([2, 4], [6])
    assert [t.name for t in second.tools] == ["Ask"]


def test_the_prompt_holds_after_a_compaction_too_and_not_for_a_subagent(write_jsonl: Write) -> None:
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", None, "user", "one"),
            snapshot("2", "1", "Main."),
            line("3", "2", "assistant", text("two"), mid="m1"),
            line("a", None, "user", "sub", isSidechain=True, agentId="x1"),
            line("b", "a", "assistant", text("yes"), mid="m9", isSidechain=True, agentId="x1"),
            line(
                "4", None, "system", subtype="compact_boundary", logicalParentUuid="3", content="Conversation compacted"
            ),
            line("5", "4", "user", "summary", isCompactSummary=True),
            line("6", "5", "assistant", text("three"), mid="m2"),
        ],
    )
    assert {s.session_id: [m.content for m in s.messages] for s in read_claude_code(path).sessions} == {
        "s": ["Main.", "one", "two"],
        "s#2": ["Main.", "summary", "three"],
        "s/agent-x1": ["sub", "yes"],
    }


def test_tools_that_are_recorded_by_name_are_offered_and_no_others(write_jsonl: Write) -> None:
    init = {"type": "system", "subtype": "init", "session_id": "s", "tools": ["Read", "mcp__x__y", 7]}
    path = write_jsonl(
        "s.jsonl",
        [
            init,
            {"type": "user", "session_id": "s", "message": {"role": "user", "content": "hi"}},
            {
                "type": "assistant",
                "session_id": "s",
                "message": {"id": "m", "content": call("c", "Bash", command="ls")},
            },
        ],
    )
    (session,) = with_tools(read_claude_code(path).sessions, every_builtin=True)
    assert [(t.name, t.origin) for t in session.tools] == [("Read", "declared"), ("mcp__x__y", "inferred")]


# Calls and answers as the model sent them.


def arguments(write_jsonl: Write, block: dict[str, Any], **extra: Any) -> dict[str, Any]:
    answer = line("2", "1", "assistant", [block], mid="m", **extra)
    (session,) = read_claude_code(write_jsonl("s.jsonl", [line("1", None, "user", "hi"), answer])).sessions
    return session.messages[1].tool_calls[0].parsed_arguments()


SENT = {"command": "cd /srv && ls", "n": 1}


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        ({"c": SENT}, SENT),
        ({"other": SENT}, {"command": "ls"}),
        ({"c": "cd"}, {"command": "ls"}),
        ("?", {"command": "ls"}),
    ],
)
def test_a_call_is_the_one_that_was_sent(write_jsonl: Write, wire: Any, expected: dict[str, Any]) -> None:
    (block,) = call("c", "Bash", command="ls")
    assert arguments(write_jsonl, block, wireToolInputs=wire) == expected
    notes = read_claude_code(
        write_jsonl("s.jsonl", [line("1", None, "assistant", [block], wireToolInputs=wire)])
    ).report.notes
    assert notes["unreadable_wire_inputs"] == (wire == "?" or wire.get("c") == "cd")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"replace_all": False, "old_string": "a"}, {"old_string": "a"}),
        ({"replace_all": True, "old_string": "a"}, {"replace_all": True, "old_string": "a"}),
        ({"old_string": "a", "replace_all": False}, {"old_string": "a", "replace_all": False}),
    ],
)
def test_a_default_that_claude_code_put_first_is_not_the_models(write_jsonl: Write, given: Any, expected: Any) -> None:
    found = arguments(write_jsonl, {"type": "tool_use", "id": "c", "name": "Edit", "input": given})
    assert list(found.items()) == list(expected.items())


@pytest.mark.parametrize(
    ("version", "given", "expected"),
    [
        ("1.0.120", {"plan": "# Plan"}, {"plan": "# Plan"}),
        ("2.0.50", {"plan": "# Plan"}, {"plan": "# Plan"}),
        ("2.0.51", {"plan": "# Plan"}, {}),
        ("2.1.39", {"plan": "# Plan", "allowedPrompts": []}, {"allowedPrompts": []}),
        ("?", {"plan": "# Plan", "planFilePath": "p"}, {}),
        ("?", {"plan": "# Plan"}, {"plan": "# Plan"}),
    ],
)
def test_a_plan_that_was_copied_from_its_file_is_not_the_models(
    write_jsonl: Write, version: str, given: Any, expected: Any
) -> None:
    block = {"type": "tool_use", "id": "c", "name": "ExitPlanMode", "input": given}
    assert arguments(write_jsonl, block, version=version) == expected


def test_a_plan_file_that_was_written_says_so_whatever_the_version(write_jsonl: Write) -> None:
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", None, "user", "plan"),
            line("2", "1", "assistant", call("a", "Write", file_path="/h/.claude/plans/x.md", content="P"), mid="m1"),
            line("3", "2", "user", result("a", "ok")),
            line("4", "3", "assistant", call("b", "ExitPlanMode", plan="P"), mid="m2"),
        ],
    )
    (session,) = read_claude_code(path).sessions
    assert session.messages[3].tool_calls[0].arguments == "{}"


def test_a_placeholder_is_no_answer(write_jsonl: Write) -> None:
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", None, "user", "hi"),
            line("2", "1", "assistant", [*text("(no content)"), *call("a")], mid="m1"),
            line("3", "2", "user", result("a", "ok")),
            line("4", "3", "assistant", text("(no content)"), mid="m2"),
        ],
    )
    (session,) = read_claude_code(path).sessions
    assert [(m.content, m.status) for m in session.messages if m.role == "assistant"] == [
        ("", None),
        ("(no content)", "synthetic"),
    ]


@pytest.mark.parametrize(("reasons", "statuses"), [("eEe", [None, "truncated", None]), ("EEe", [None] * 3)])
def test_an_answer_without_a_reason_for_its_end_broke_off_where_others_have_one(
    write_jsonl: Write, reasons: str, statuses: list[str | None]
) -> None:
    lines = [line("u0", None, "user", "go")]
    for number, kind in enumerate(reasons):
        answer = line(f"a{number}", f"u{number}", "assistant", text(f"<{number}>"), mid=f"m{number}")
        answer["message"]["stop_reason"] = "end_turn" if kind == "e" else None
        lines += [answer, line(f"u{number + 1}", f"a{number}", "user", "go on")]
    (session,) = read_claude_code(write_jsonl("s.jsonl", lines)).sessions
    assert [m.status for m in session.messages if m.role == "assistant"] == statuses


def test_a_snapshot_without_tools_says_that_there_were_none(write_jsonl: Write) -> None:
    path = write_jsonl(
        "s.jsonl",
        [
            snapshot("p", None, "be brief"),
            line("1", "p", "user", "hi"),
            line("2", "1", "assistant", text("hello"), mid="m"),
        ],
    )
    other = Session("x", (Message("assistant", "", (ToolCall("c", "Bash", '{"command": "ls"}'),)),))
    other = replace(other, metadata={"format": "claude-code"})
    session, _ = with_tools([*read_claude_code(path).sessions, other])
    assert session.tools == ()


@pytest.mark.parametrize(
    ("content", "shown", "unknown"),
    [
        ({"type": "advisor_result", "text": "Use a lock."}, "Use a lock.", 0),
        ({"type": "web_search_tool_result_error", "error_code": "max_uses_exceeded"}, "max_uses_exceeded", 0),
        ({"type": "code_execution_result", "stdout": "4\n", "stderr": "", "return_code": 0, "content": []}, "4\n", 0),
        ({"type": "bash_code_execution_result", "stdout": "a", "stderr": "b"}, "a\nb", 0),
        (
            {
                "type": "web_fetch_result",
                "url": "https://a.dev",
                "content": {"type": "document", "source": {"type": "text", "data": "the page"}},
            },
            "https://a.dev\nthe page",
            0,
        ),
        ([{"type": "web_search_result", "title": "A", "url": "https://a.dev"}], "A\nhttps://a.dev", 0),
        ({"type": "text", "text": "important"}, "important", 0),
        ({"type": "hologram", "data": "x"}, "", 1),
        ({"type": "x_result", "content": {"type": "x_result", "content": {"type": "x_result"}}}, "", 1),
    ],
)
def test_a_result_that_is_an_object_is_read(write_jsonl: Write, content: object, shown: str, unknown: int) -> None:
    served = [
        {"type": "server_tool_use", "id": "s1", "name": "advisor", "input": {}},
        {"type": "advisor_tool_result", "tool_use_id": "s1", "content": content},
        *text("I will."),
    ]
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", None, "user", "hi"),
            line("2", "1", "assistant", served, mid="m"),
            line("3", "2", "assistant", call("c"), mid="n"),
            line("4", "3", "user", result("c", content)),
        ],
    )
    found = read_claude_code(path)
    (session,) = found.sessions
    assert [m.content for m in session.messages if m.role == "tool"] == [shown, shown]
    assert found.report.notes["unknown_blocks"] == 2 * unknown
