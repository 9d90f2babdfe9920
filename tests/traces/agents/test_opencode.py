from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdft_cli.records import Message, ToolCall
from sdft_cli.traces.source import read_file
from sdft_cli.traces.types import FileSessions
from tests.traces.agents.sessions import FINISH, START, opencode, text_part, tool_part

WriteLines = Callable[..., Path]
PROMPT = opencode("m1", "user", text_part("go"))


def export(*messages: dict[str, Any], **info: Any) -> dict[str, Any]:
    return {"info": {"id": "ses_1", **info}, "messages": list(messages)}


def read(path: Path) -> FileSessions:
    found = read_file(path)
    assert found is not None
    return found


def told(found: FileSessions) -> list[list[tuple[str, str, str | None]]]:
    return [[(m.role, m.content, m.status) for m in s.messages] for s in found.sessions]


def test_each_step_of_a_message_is_a_turn_and_text_after_a_call_stays_in_its_step(write_jsonl: WriteLines) -> None:
    call = tool_part("a", "bash", "completed", input={"command": "ls"}, output="x")
    answer = opencode(
        "m2", "assistant", START, text_part("First."), call, text_part("Wait."), FINISH, START, text_part("Done.")
    )
    found = read(write_jsonl("o.jsonl", [export(PROMPT, answer)]))
    assert found.sessions[0].messages == (
        Message("user", "go"),
        Message("assistant", "First.\nWait.", (ToolCall("a", "bash", '{"command": "ls"}'),)),
        Message("tool", "x", tool_call_id="a", name="bash"),
        Message("assistant", "Done."),
    )


def test_without_marks_of_steps_a_text_after_a_result_is_the_next_turn(write_jsonl: WriteLines) -> None:
    call = tool_part("a", "bash", "completed", input={}, output="x")
    found = read(
        write_jsonl(
            "o.jsonl", [export(PROMPT, opencode("m2", "assistant", text_part("First."), call, text_part("Done.")))]
        )
    )
    assert [m.role for m in found.sessions[0].messages] == ["user", "assistant", "tool", "assistant"]
    two = opencode("m2", "assistant", call, tool_part("b", "bash", "completed", input={}, output="y"))
    found = read(write_jsonl("p.jsonl", [export(PROMPT, two)]))
    assert [m.role for m in found.sessions[0].messages] == ["user", "assistant", "tool", "tool"]


@pytest.mark.parametrize(
    ("part", "content"),
    [
        (tool_part("a", "bash", "error", input={}, error="denied"), "denied"),
        (
            tool_part(
                "a", "bash", "error", input={}, error="stopped", metadata={"interrupted": True, "output": "half"}
            ),
            "half",
        ),
        (tool_part("a", "bash", "pending", input={}), "[Tool execution was interrupted]"),
        (tool_part("a", "bash", "running", input={}), "[Tool execution was interrupted]"),
        (tool_part("a", "bash", "completed", input={}, output="x", attachments=[{"mime": "image/png"}]), "x\n[image]"),
        (tool_part("a", "bash", "completed", input={}, output={"n": 1}), '{"n": 1}'),
    ],
)
def test_results_are_what_the_model_was_sent(part: dict[str, Any], content: str, write_jsonl: WriteLines) -> None:
    found = read(write_jsonl("o.jsonl", [export(PROMPT, opencode("m2", "assistant", START, part))]))
    assert found.sessions[0].messages[-1] == Message("tool", content, tool_call_id="a", name="bash")


def test_errors_are_in_no_context_and_what_the_user_stopped_stays(write_jsonl: WriteLines) -> None:
    stopped = {"name": "MessageAbortedError", "data": {"message": "x"}}
    call = tool_part("a", "bash", "completed", input={}, output="x")
    found = read(
        write_jsonl(
            "o.jsonl",
            [
                export(
                    PROMPT,
                    opencode("m2", "assistant", START, text_part("half"), error={"name": "APIError"}),
                    opencode("m3", "assistant", START, error={"name": "MessageOutputLengthError"}),
                    opencode("m4", "assistant", START, {"type": "reasoning", "text": "hm"}, error=stopped),
                    opencode("m5", "assistant", START, call, FINISH, START, text_part("I wi"), error=stopped),
                    opencode("m6", "assistant", START, text_part("cut"), {"type": "step-finish", "reason": "length"}),
                )
            ],
        )
    )
    assert told(found) == [
        [
            ("user", "go", None),
            ("assistant", "", None),
            ("tool", "x", None),
            ("assistant", "I wi", "interrupted"),
            ("assistant", "cut", "truncated"),
        ]
    ]
    assert [(r.record_id, r.reason) for r in found.report.lost_turns] == [
        ("ses_1/lost-m2", "api_error"),
        ("ses_1/lost-m3", "truncated"),
        ("ses_1/lost-m4", "interrupted"),
    ]


def test_a_compaction_starts_a_context_with_its_prompt_and_summary(write_jsonl: WriteLines) -> None:
    asked = opencode("m3", "user", {"type": "compaction", "auto": True})
    summary = opencode("m4", "assistant", START, text_part("So far."), summary=True)
    rest = [opencode("m5", "user", text_part("on")), opencode("m6", "assistant", START, text_part("next"))]
    first = opencode("m2", "assistant", START, text_part("first"))
    found = read(write_jsonl("o.jsonl", [export(PROMPT, first, asked, summary, *rest)]))
    assert told(found) == [
        [("user", "go", None), ("assistant", "first", None), ("user", "What did we do so far?", None)],
        [
            ("user", "What did we do so far?", None),
            ("assistant", "So far.", "repeated"),
            ("user", "on", None),
            ("assistant", "next", None),
        ],
    ]
    assert [s.session_id for s in found.sessions] == ["ses_1", "ses_1#2"]
    assert found.report.lines == {"conversation": 1}
    assert found.report.notes["compactions"] == 1


def test_what_the_user_reverted_is_abandoned(write_jsonl: WriteLines) -> None:
    rows = [
        PROMPT,
        opencode("m2", "assistant", text_part("kept")),
        opencode("m3", "user", text_part("no")),
        opencode("m4", "assistant", text_part("gone")),
    ]
    found = read(write_jsonl("o.jsonl", [export(*rows, revert={"messageID": "m3"})]))
    assert told(found) == [[("user", "go", None), ("assistant", "kept", None)]]
    assert [(r.record_id, r.reason) for r in found.report.lost_turns] == [("ses_1/lost-m4", "abandoned_branch")]


def test_prompts_with_files_and_what_the_model_did_not_see(write_jsonl: WriteLines) -> None:
    prompt = opencode(
        "m1",
        "user",
        text_part("look"),
        {"type": "text", "text": "hidden", "ignored": True},
        {"type": "text", "text": "file text", "synthetic": True},
        {"type": "file", "mime": "text/plain", "url": "x"},
        {"type": "file", "mime": "image/png", "url": "x"},
        {"type": "subtask", "prompt": "x"},
        {"type": "new"},
    )
    found = read(
        write_jsonl("o.jsonl", [export(prompt, opencode("m2", "assistant", text_part("ok")), parentID="ses_0")])
    )
    (session,) = found.sessions
    assert session.messages[0].content == "look\nfile text\n[image]\nThe following tool was executed by the user"
    assert session.group == "ses_0"
    assert +found.report.notes == {"images": 1, "unknown_blocks": 1}


def test_rows_that_are_no_export_are_broken_and_empty_ones_have_no_turn(write_jsonl: WriteLines) -> None:
    good = export(PROMPT, opencode("m2", "assistant", text_part("ok")))
    rows = [good, {**good, "messages": ["x"]}, {**good, "messages": None}, export(PROMPT, opencode("m2", "assistant"))]
    found = read(write_jsonl("o.jsonl", rows))
    assert len(found.sessions) == 1
    assert found.report.lines == {"conversation": 2, "broken": 2}
    assert found.report.broken[0] == "o.jsonl:2 (a message is no JSON object)"
    assert found.report.notes["contexts_without_turns"] == found.report.notes["empty_messages"] == 1


def test_an_export_is_one_json_document(tmp_path: Path) -> None:
    path = tmp_path / "o.json"
    path.write_text(json.dumps(export(PROMPT, opencode("m2", "assistant", text_part("ok"))), indent=2))
    assert told(read(path)) == [[("user", "go", None), ("assistant", "ok", None)]]
