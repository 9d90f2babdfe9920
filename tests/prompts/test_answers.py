from __future__ import annotations

import json

import pytest

from sdft_cli.prompts.answers import position_of, prose_scorer, score
from sdft_cli.prompts.syntaxes.named_json import MISTRAL_ARGS
from sdft_cli.records import Message, ToolCall, ToolSchema
from tests.prompts.test_leaks import record_of

READ = ToolSchema(
    "Read",
    "",
    json.dumps(
        {
            "type": "object",
            "properties": {"path": {"type": "string"}, "limit": {"type": "integer"}},
            "required": ["path"],
        }
    ),
)
USER = Message("user", "read a/b.py")
TOOL_TURN = record_of([USER], Message("assistant", "", (ToolCall("1", "Read", '{"path": "a/b.py"}'),)), (READ,))
PROSE = record_of([USER], Message("assistant", "All is done."), (READ,))


def call(**arguments: object) -> str:
    return f"<tool_call>{json.dumps({'name': 'Read', 'arguments': arguments})}</tool_call>"


@pytest.mark.parametrize(
    ("answer", "true"),
    [
        (call(path="a/b.py"), {"terminated", "parsed", "named", "required", "known", "valid", "exact"}),
        (call(path="c"), {"terminated", "parsed", "named", "required", "known", "valid"}),
        (call(path="a/b.py", more=1), {"terminated", "parsed", "named", "required", "valid"}),
        (call(limit=3), {"terminated", "parsed", "named", "known"}),
        (call(path=3), {"terminated", "parsed", "named", "required", "known"}),
        (call(path="a/b.py").replace("Read", "Write"), {"terminated", "parsed"}),
        (call(path="a/b.py") * 2, {"terminated", "parsed"}),
        (call(path="a/b.py")[:-3], set()),
        ("<tool_call>{oops}</tool_call>", {"terminated"}),
        ("no call", set()),
    ],
)
def test_each_flag_of_a_tool_turn(answer: str, true: set[str]) -> None:
    found = score(TOOL_TURN, answer, None)
    assert {flag for flag, holds in found.flags.items() if holds} == true
    assert found.chrf is None
    assert found.tools == "Read"
    assert not found.calls_unasked


def test_prose_is_compared_as_text_and_a_call_in_its_place_is_unasked() -> None:
    pytest.importorskip("sacrebleu")
    prose = prose_scorer()
    same = score(PROSE, "All is done.", prose)
    assert (same.chrf, same.flags, same.calls_unasked, same.tools) == (100.0, {}, False, "")
    other = score(PROSE, "Nothing works", prose)
    assert other.chrf is not None
    assert 0 < other.chrf < 40
    called = score(PROSE, call(path="x"), prose)
    assert called.calls_unasked
    assert called.chrf == 0.0  # the call is no prose
    assert score(PROSE, "All is done.", None).chrf is None


def test_positions_count_assistant_turns() -> None:
    turn = Message("assistant", "x")
    names = [position_of(record_of([USER, *[turn] * n], turn)) for n in (0, 1, 3, 4, 8, 9, 50)]
    assert names == ["first turn", *["turns 2 to 4"] * 2, *["turns 5 to 9"] * 2, *["turns 10 and later"] * 2]


def test_copies_and_paths_are_those_of_the_whole_answer() -> None:
    answer = call(path="/etc/passwd")
    assert score(TOOL_TURN, answer, None).unknown_paths == ["/etc/passwd"]
    assert score(TOOL_TURN, call(path="a/b.py"), None).unknown_paths == []
    assert score(TOOL_TURN, "Based on the reference: " + answer, None).mentions_reference


CONTENT = "def main():\n\tprint(\"one two\")\n\nopen('/etc/passwd')\nfor each of them in turn do it\nsrc/main.py\n"
EDIT = ToolSchema("Edit", "Writes\nto disk", '{"properties": {"path": {"description": "in the\\nfolder here"}}}')
WRITING = Message(
    "assistant", "I write.", (ToolCall("1", "Edit", json.dumps({"path": "src/main.py", "new": CONTENT})),)
)
HERMES = f'I write.<tool_call>{{"name": "Edit", "arguments": {WRITING.tool_calls[0].arguments}}}</tool_call>'
XML = (
    "I write.\n\n<tool_call>\n<function=Edit>\n<parameter=path>\nsrc/main.py\n</parameter>\n"
    f"<parameter=new>\n{CONTENT}\n</parameter>\n</function>\n</tool_call>"
)


@pytest.mark.parametrize("answer", [HERMES, XML])
def test_a_copy_is_whole_and_paths_are_themselves_in_each_syntax(answer: str) -> None:
    record = record_of([Message("user", "open src/main.py")], WRITING, (EDIT,))
    found = score(record, answer, None)
    assert found.flags["exact"]
    assert found.copied_share == 1.0
    assert found.unknown_paths == ["/etc/passwd"]


@pytest.mark.parametrize(("answer", "share"), [(HERMES, 15 / 20), (XML, 11 / 22)])
def test_a_copy_that_was_cut_off_is_found_too(answer: str, share: float) -> None:
    record = record_of([Message("user", "open src/main.py")], WRITING, (EDIT,))
    found = score(record, answer[: answer.index("it", answer.index("turn"))], None)
    assert len(found.flags) == 7
    assert not any(found.flags.values())
    assert found.copied_share == share  # by hand; the syntax's own words are in the way of the other runs
    assert found.unknown_paths == ["/etc/passwd"]


def test_what_is_thought_can_leak() -> None:
    found = score(TOOL_TURN, "<think>The reference answer reads /etc/passwd</think>" + call(path="a/b.py"), None)
    assert (found.mentions_reference, found.unknown_paths) == (True, ["/etc/passwd"])


def test_what_the_tools_descriptions_say_is_no_copy() -> None:
    expert = Message("assistant", "it says path description in the folder here")
    record = record_of([USER], expert, (EDIT,))
    assert score(record, "path description in the folder here", None).copied_share == 0.0
    assert score(record, "it says path description in the", None).copied_share == 1.0


def test_what_is_about_calls_is_left_out_where_they_cannot_be_scored() -> None:
    found = score(TOOL_TURN, call(path="a/b.py"), None, scorable=False)
    assert (found.flags, found.tools, found.chrf) == ({}, "Read", None)
    prose = score(PROSE, call(path="x") + "All is done.", lambda answer, expert: float(answer == expert), None, False)
    assert (prose.calls_unasked, prose.chrf) == (None, 1.0)


def test_calls_are_read_in_the_syntax_of_the_model() -> None:
    answer = '[TOOL_CALLS]Read[ARGS]{"path": "a/b.py"}'
    assert score(TOOL_TURN, answer, None, MISTRAL_ARGS).flags["exact"]
    assert not score(TOOL_TURN, answer, None).flags["parsed"]
    assert score(PROSE, answer, None, MISTRAL_ARGS).calls_unasked
