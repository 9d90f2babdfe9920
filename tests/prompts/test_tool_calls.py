from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdft_cli.prompts.chat import ChatPrompts
from sdft_cli.prompts.tool_calls import ParsedCall, comes_back, parse_turn, same_calls
from sdft_cli.records import Message, ToolCall, ToolSchema

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
    assert parse_turn(f"thought {call}</think>ok") == parse_turn("ok")  # the prompt began the block
    assert not parse_turn("hello").well_formed


def test_tags_inside_json_strings_are_text() -> None:
    value = "<think>a</think></tool_call><tool_call>{}"
    text = f"x<tool_call>{json.dumps({'name': 'Write', 'arguments': {'content': value}})}</tool_call>y"
    turn = parse_turn(text)
    assert turn.calls == (ParsedCall("Write", {"content": value}),)
    assert (turn.content, turn.errors) == ("xy", ())


def test_the_templates_own_spelling_of_booleans_and_null() -> None:
    tool = ToolSchema("T", "", json.dumps({"properties": {k: {"type": k} for k in ("boolean", "null", "string")}}))
    body = "".join(
        f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in (("boolean", "True"), ("null", "None"), ("string", "True"))
    )
    (call,) = parse_turn(f"<tool_call>\n<function=T>\n{body}</function>\n</tool_call>", [tool]).calls
    assert call.arguments == {"boolean": True, "null": None, "string": "True"}


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "A", "arguments": {"x": "1<tool_call>{"name": "B", "arguments": {}}</tool_call>',
        "<tool_call>\n<function=A>\n<parameter=x>\n1\n<tool_call>\n<function=B>\n</function>\n</tool_call>",
    ],
)
def test_a_truncated_call_does_not_swallow_the_next_one(text: str) -> None:
    turn = parse_turn(text)
    assert turn.calls == (ParsedCall("B", {}),)
    assert turn.errors == ("unterminated",)
    assert not turn.well_formed


@pytest.mark.parametrize("arguments", ['{"a": 1, "a": 2}', '{"a": NaN}', '{"a": {"b": 1, "b": 1}}'])
def test_json_that_is_read_in_two_ways_is_no_call(arguments: str) -> None:
    assert parse_turn(f'<tool_call>{{"name": "A", "arguments": {arguments}}}</tool_call>').errors == ("not JSON",)


def test_equal_calls() -> None:
    message = Message("assistant", "", (ToolCall("1", "A", '{"x": 1, "y": [true]}'), ToolCall("2", "B", "{}")))

    def answer(*calls: tuple[str, Any]) -> Any:
        return parse_turn(
            "".join(f"<tool_call>{json.dumps({'name': n, 'arguments': a})}</tool_call>" for n, a in calls)
        )

    assert same_calls(answer(("B", {}), ("A", {"y": [True], "x": 1.0})), message)
    assert not same_calls(answer(("B", {}), ("A", {"y": [1], "x": 1})), message)
    assert not same_calls(answer(("A", {"x": 1, "y": [True]})), message)
    assert not same_calls(answer(("B", {}), ("B", {}), ("A", {"x": 1, "y": [True]})), message)


# Names and texts, of all Unicode and of what the syntaxes are made of.
PIECES = ["<parameter=a>", "</parameter>", "</function>", "<function=f>", "<tool_call>", "</tool_call>", "<think>"]
PIECES += ["</think>", "\n", " ", "\t", "\r\n", '"', "\\", "}", "{", "True", "1", "1.0", "null", "<|im_end|>", "&lt;"]
TEXT = st.one_of(st.text(max_size=20), st.lists(st.sampled_from(PIECES), max_size=6).map("".join))
KEY = st.text("abcXYZ_-. \u00e9\u4e2d", min_size=1, max_size=6)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=6,
)
TYPES = {"string": str, "boolean": bool, "integer": int, "number": (int, float), "object": dict, "array": list}


@st.composite
def turns(draw: st.DrawFn) -> tuple[Message, tuple[ToolSchema, ...]]:
    """A turn of one to three calls of a tool, whose schema gives most arguments the type that their values have."""
    named = {draw(KEY): draw(JSON) for _ in range(draw(st.integers(0, 3)))}
    kinds = {k: next((t for t, c in TYPES.items() if isinstance(v, c)), "null") for k, v in named.items()}
    properties = {k: {"type": t} for k, t in kinds.items() if draw(st.integers(0, 9))}
    tool = ToolSchema(draw(KEY), "", json.dumps({"type": "object", "properties": properties}))
    values = [named, *(dict(draw(st.permutations(sorted(named.items())))) for _ in range(draw(st.integers(0, 2))))]
    calls = tuple(ToolCall(str(i), tool.name, json.dumps(v)) for i, v in enumerate(values))
    return Message("assistant", draw(st.sampled_from(["", "I look at it."])), calls), (tool,)


def hopeless(message: Message, tool: ToolSchema) -> bool:
    """Say, from the values alone, that XML has no unambiguous form for a call."""
    properties = json.loads(tool.parameters)["properties"]
    for call in message.tool_calls:
        for key, value in json.loads(call.arguments).items():
            text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
            if re.search(r"(?s)</?tool_call>|</parameter>.*<parameter=", text):
                return True
            if key not in properties and not isinstance(value, str):
                return True  # nothing says that it is no text
    return False


@pytest.mark.parametrize("template", ["smollm2", "qwen3_5_nothink"])
def test_what_a_template_renders_comes_back_or_is_said_not_to(
    make_prompts: Callable[[str], ChatPrompts], template: str
) -> None:
    prompts = make_prompts(template)
    counts = {"back": 0, "not": 0}

    @settings(max_examples=10_000, deadline=None, database=None)
    @given(turns())
    def check(case: tuple[Message, tuple[ToolSchema, ...]]) -> None:
        message, tools = case
        text = prompts.reference_text(message)
        back = comes_back(text, message, tools)
        counts["back" if back else "not"] += 1
        assert back == (template == "smollm2" or not hopeless(message, tools[0]))
        found = parse_turn(text, tools)
        if back:
            assert [(c.name, c.arguments) for c in found.calls] == [
                (c.name, json.loads(c.arguments)) for c in message.tool_calls
            ]
            assert found.content == message.content
        for cut in (len(text) // 2, len(text) - 1):  # a truncated turn is never the whole one
            assert not same_calls(parse_turn(text[:cut], tools), message)

    check()
    assert counts["back"] > 5_000
