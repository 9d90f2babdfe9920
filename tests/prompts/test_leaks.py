from __future__ import annotations

import json

import pytest

from sdft_cli.prompts.leaks import (
    NGRAM,
    context_text,
    copied_share,
    expert_text,
    mentions_reference,
    turn_text,
    unknown_paths,
)
from sdft_cli.prompts.tool_calls import parse_turn
from sdft_cli.records import Message, Record, RecordRow, Session, ToolCall, ToolSchema


def record_of(context: list[Message], expert: Message, tools: tuple[ToolSchema, ...] = ()) -> Record:
    session = Session("s", (*context, expert), tools)
    row = RecordRow(f"s/{len(context)}", "s", len(context), 1, 1, 1, bool(expert.tool_calls))
    return Record(row, session)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Based on the reference, I would read the file.", True),
        ("As shown in the example, call Read.", True),
        ("<expert_reference> x", True),
        ("The expert response calls Bash.", True),
        ("The reference implementation is wrong.", True),
        ("For example, I read the file first.", False),
        ("The example folder holds three files.", False),
        ("I follow the reference manual.", False),
        ("Pass it by reference.", False),
    ],
)
def test_mentions_of_what_was_never_shown(answer: str, expected: bool) -> None:
    assert mentions_reference(answer, "fix the bug") is expected


def test_what_the_context_speaks_of_may_be_spoken_of() -> None:
    assert not mentions_reference("The reference implementation is slow.", "look at The Reference Implementation")


def test_copied_runs_are_counted_by_hand() -> None:
    words = [f"w{i}" for i in range(12)]
    expert = " ".join(words)
    assert copied_share(expert, expert, "") == 1.0
    assert copied_share(expert, expert, expert) == 0.0  # it could read them in its context
    answer = " ".join([*words[:NGRAM], "x", "y"])  # three runs, one of them the expert's
    assert copied_share(answer, expert, "") == pytest.approx(1 / 3)
    assert copied_share(" ".join(words[: NGRAM - 1]), expert, "") == 0.0
    assert copied_share(", ".join(words).upper(), expert, "") == 1.0  # neither case nor punctuation hides a copy


def test_paths_out_of_nowhere() -> None:
    context = "cd /srv/app and open src/main.py or ./run.sh"
    answer = "I read src/main.py, /srv/app and /etc/hosts. Then tests/test_main.py, ./run.sh and ../other/x.c."
    assert unknown_paths(answer, context) == ["/etc/hosts", "tests/test_main.py", "../other/x.c"]
    assert unknown_paths("either/or, and/or, 1/2, a / b, https://example.org/x/y", "") == []
    assert unknown_paths("/a/b /a/b", "") == ["/a/b"]


def test_an_answer_is_text_in_the_form_of_the_experts() -> None:
    arguments = {"command": 'cd /tmp\n\tls "a\\b"', "deep": [{"n": 3}]}
    expert = Message("assistant", "text", (ToolCall("2", "Bash", json.dumps(arguments)),))
    answer = f'text\n<tool_call>\n{{"name": "Bash", "arguments": {json.dumps(arguments)}}}\n</tool_call>'
    assert turn_text(parse_turn(answer)).strip() == expert_text(record_of([], expert))
    assert turn_text(parse_turn("<think>so</think>" + answer)) == "so\n" + expert_text(record_of([], expert))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"name": "Bash", "arguments": {"c": "cd\\n\\t\\"/tmp\\" \\\\n \\u00e9\\/', '"c": "cd\n\t"/tmp" \\n \u00e9/'),
        ('{"c": "ends in the middle\\', "in the middle\\"),
        ('{"c": "ends in the middle\\u00', "in the middleu00"),
        ("<function=Bash>\n<parameter=c>\nC:\\new", "C:\\new"),  # nothing in XML is escaped
    ],
)
def test_escapes_of_a_call_that_does_not_parse_are_undone(answer: str, expected: str) -> None:
    assert turn_text(parse_turn(f"I do.<tool_call>{answer}")).endswith(expected)


def test_the_context_holds_all_that_the_student_is_shown() -> None:
    call = ToolCall("1", "Read", json.dumps({"file_path": "a/b.py", "lines": [3, {"deep": "x"}]}))
    context = [Message("user", "hi"), Message("assistant", "so", (call,)), Message("tool", "result", tool_call_id="1")]
    expert = Message("assistant", "text", (ToolCall("2", "Bash", '{"command": "ls /tmp"}'),))
    found = record_of(context, expert, (ToolSchema("Bash", "runs", '{"type": "object"}'),))
    text = context_text(found)
    for part in ("hi", "so", "Read", "file_path", "a/b.py", "3", "deep", "x", "result", "Bash runs"):
        assert part in text
    assert "ls /tmp" not in text
    assert expert_text(found) == "text\nBash command ls /tmp"
