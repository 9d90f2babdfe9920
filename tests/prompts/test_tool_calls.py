from __future__ import annotations

import json

import pytest

from sdft_cli.prompts.tool_calls import ParsedCall, parse_turn
from sdft_cli.records import ToolSchema

EDIT = ToolSchema(
    "Edit",
    "",
    json.dumps({"type": "object", "properties": {"new": {"type": "string"}, "all": {"type": "boolean"}}}),
)


def test_hermes_calls_and_prose() -> None:
    turn = parse_turn(
        'I look.\n<tool_call>\n{"name": "Read", "arguments": {"p": "a"}}\n</tool_call>\n'
        '<tool_call>{"name": "Bash", "arguments": {}}</tool_call>'
    )
    assert turn.content == "I look."
    assert turn.calls == (ParsedCall("Read", {"p": "a"}), ParsedCall("Bash", {}))
    assert turn.well_formed


def test_xml_values_stay_raw_and_are_typed_by_the_schema() -> None:
    text = (
        "<tool_call>\n<function=Edit>\n<parameter=new>\n    123\n\n</parameter>\n"
        "<parameter=all>\ntrue\n</parameter>\n<parameter=extra>\n7\n</parameter>\n</function>\n</tool_call>"
    )
    assert parse_turn(text, [EDIT]).calls == (ParsedCall("Edit", {"new": "    123\n", "all": True, "extra": "7"}),)


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        ('<tool_call>{"name": "Read", "arguments": {"p": "a"}}', ("unterminated",)),
        ("<tool_call>{oops}</tool_call>", ("not JSON",)),
        ('<tool_call>{"arguments": {}}</tool_call>', ("no name",)),
        ('<tool_call>{"name": "Read", "arguments": "a"}</tool_call>', ("arguments are not an object",)),
        ("<tool_call><function=Edit><parameter=new>a</tool_call>", ("not a function element",)),
        (
            "<tool_call><function=Edit><parameter=a>1</parameter>x<parameter=b>2</parameter></function></tool_call>",
            ("text between parameters",),
        ),
        (
            "<tool_call><function=Edit><parameter=a>1</parameter><parameter=a>2</parameter></function></tool_call>",
            ("parameter a twice",),
        ),
    ],
)
def test_what_is_no_call_is_named(text: str, errors: tuple[str, ...]) -> None:
    turn = parse_turn(text, [EDIT])
    assert turn.calls == ()
    assert turn.errors == errors
    assert not turn.well_formed


def test_a_call_inside_a_think_block_is_no_call() -> None:
    call = '<tool_call>{"name": "Read", "arguments": {}}</tool_call>'
    assert parse_turn(f"<think>{call}</think>ok").calls == ()
    assert parse_turn(f"<think>{call}").calls == ()
    assert not parse_turn("hello").well_formed
