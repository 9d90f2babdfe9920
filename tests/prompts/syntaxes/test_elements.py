from __future__ import annotations

import json

import pytest

from sdft_cli.prompts.syntaxes.elements import GLM, MINIMAX, MUSE, QWEN_XML, SEED
from sdft_cli.prompts.syntaxes.turns import ParsedCall
from sdft_cli.records import ToolSchema

TOOL = ToolSchema(
    "Edit",
    "",
    json.dumps({"properties": {"text": {"type": "string"}, "n": {"type": "integer"}, "l": {"type": "array"}}}),
)


def glm(*pairs: tuple[str, str], name: str = "Edit") -> str:
    body = "".join(f"<arg_key>{k}</arg_key>\n<arg_value>{v}</arg_value>\n" for k, v in pairs)
    return f"<tool_call>{name}\n{body}</tool_call>"


def test_glm_values_are_raw_and_typed_by_the_schema() -> None:
    edit = glm(("text", " 5\n"), ("n", "-7"), ("l", '[1, {"a": null}]'), ("other", "5"))
    text = f"So.\n{edit}\n{glm(name='Stop')}"
    turn = GLM.parse(text, [TOOL])
    first = ParsedCall("Edit", {"text": " 5\n", "n": -7, "l": [1, {"a": None}], "other": "5"})
    assert (turn.content, turn.calls, turn.errors) == ("So.", (first, ParsedCall("Stop", {})), ())
    short = "<tool_call>Edit<arg_key>n</arg_key><arg_value>3</arg_value></tool_call>"
    assert GLM.parse(short, [TOOL]).calls == (ParsedCall("Edit", {"n": 3}),)


@pytest.mark.parametrize(
    ("text", "errors", "begun"),
    [
        ("<tool_call>Edit\n<arg_key>n</arg_key>", ("unterminated",), "Edit"),
        ("<tool_call>Ed", ("unterminated",), None),
        ("<tool_call>Edit\nn = 5</tool_call>", ("not a function element",), None),
        ("<tool_call></tool_call>", ("not a function element",), None),
        (glm(("a", "1"), ("a", "2")), ("parameter a twice",), None),
        (glm(("a", "1</arg_value> <arg_key>b")), ("text after parameters",), None),
        (glm(("a", "1")).replace("</tool_call>", "x</tool_call>"), ("text after parameters",), None),
    ],
)
def test_what_is_no_glm_call_is_named(text: str, errors: tuple[str, ...], begun: str | None) -> None:
    turn = GLM.parse(text, [TOOL])
    assert (turn.calls, turn.errors, turn.begun) == ((), errors, begun)


def test_a_closing_tag_in_a_value_closes_nothing_unless_something_follows_it() -> None:
    assert GLM.parse(glm(("text", "</arg_value> x")), [TOOL]).calls == (ParsedCall("Edit", {"text": "</arg_value> x"}),)
    text = '<invoke name="Edit">\n<parameter name="text">a</parameter> b</parameter>\n</invoke>'
    assert MINIMAX.parse(text, [TOOL]).calls == (ParsedCall("Edit", {"text": "a</parameter> b"}),)


def test_values_of_seed_stand_without_line_breaks_of_the_template() -> None:
    call = "<function=Edit>\n<parameter=text>\na\n</parameter>\n</function>"
    assert SEED.parse(f"<seed:tool_call>\n{call}\n</seed:tool_call>", [TOOL]).calls[0].arguments == {"text": "\na\n"}
    assert QWEN_XML.parse(f"<tool_call>\n{call}\n</tool_call>", [TOOL]).calls[0].arguments == {"text": "a"}
    assert SEED.parse(f"<seed:think>{call}</seed:think>x", []).thought == call


def test_qwen_xml_alone_reads_no_json() -> None:
    turn = QWEN_XML.parse('<tool_call>{"name": "Edit", "arguments": {}}</tool_call>', [TOOL])
    assert (turn.calls, turn.errors) == ((), ("not a function element",))


def test_minimax_calls_stand_in_one_frame() -> None:
    call = '<invoke name="Edit">\n<parameter name="n">5</parameter>\n</invoke>\n'
    turn = MINIMAX.parse(f"Now.\n<minimax:tool_call>\n{call}{call}</minimax:tool_call>", [TOOL])
    assert (turn.content, turn.calls, turn.errors) == ("Now.", (ParsedCall("Edit", {"n": 5}),) * 2, ())
    cut = MINIMAX.parse(f'<minimax:tool_call>\n{call}<invoke name="Edit">\n<para', [TOOL])
    assert (cut.calls, cut.errors, cut.begun) == ((ParsedCall("Edit", {"n": 5}),), ("unterminated",), "Edit")


def test_muse_thinks_calls_and_speaks_in_messages() -> None:
    text = (
        " to=self<|message|>I think.<|eom|><|start|>assistant to=Edit<|message|><atem:function_calls>\n"
        '<atem:invoke name="Edit">\n<atem:parameter name="n">5</atem:parameter>\n</atem:invoke>\n'
        "</atem:function_calls>"
    )
    turn = MUSE.parse(text, [TOOL])
    assert (turn.thought, turn.content, turn.calls) == ("I think.", "", (ParsedCall("Edit", {"n": 5}),))
    both = MUSE.parse(f"{text}<|eom|><|start|>assistant to=user<|message|>Done.<|eot|>", [TOOL])
    assert (both.thought, both.content, len(both.calls)) == ("I think.", "Done.", 1)
