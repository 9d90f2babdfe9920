from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

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
        ('<tool_call>{"q": "a}\n</tool_call>', ("not JSON",)),  # a line break ends no string, but cannot be in one
        ('<tool_call>{"q": "</tool_call>', ("unterminated",)),  # the tag is in the string
        ('<tool_call>{"q": "</tool_call>"', ("unterminated",)),
        ('<tool_call>{"q": "</tool_call>"}', ("unterminated",)),
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
    begun = parse_turn(f"thought {call}</think>ok")  # the prompt began the block
    assert (begun.content, begun.calls, begun.errors) == ("ok", (), ())
    assert not parse_turn("hello").well_formed


def test_what_is_neither_prose_nor_a_call_is_kept_as_it_is_written() -> None:
    turn = parse_turn(
        'a<think>b</think>c<tool_call>{oops}</tool_call><tool_call>{"arguments": {}}</tool_call>'
        '<tool_call>{"name": "Read", "arguments": {}}</tool_call>d<think>e</think>f<tool_call>{"name": "R'
    )
    assert (turn.content, turn.thought) == ("acdf", "b\ne")
    assert list(zip(turn.errors, turn.failed, strict=True)) == [
        ("not JSON", "{oops}"),
        ("no name", '{"arguments": {}}'),
        ("unterminated", '{"name": "R'),
    ]
    assert parse_turn("a<think>b</think>c</think>d").thought == "a<think>b</think>c"
    assert parse_turn("a<think>b").thought == "b"


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


NUMBER, WORDS = {"type": "integer"}, {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "integer"}, 5),
        ({"type": ["integer", "null"]}, 5),
        ({"type": ["integer", "string"]}, "5"),
        ({"anyOf": [NUMBER, {"type": "null"}]}, 5),
        ({"oneOf": [NUMBER, {"type": "array"}]}, 5),
        ({"anyOf": [NUMBER, WORDS]}, "5"),
        ({"anyOf": [NUMBER, {"description": "says nothing"}]}, "5"),
        ({"anyOf": [NUMBER, True]}, "5"),
        ({"allOf": [NUMBER, {"description": "says nothing"}]}, 5),
        ({"allOf": [{"type": ["string", "integer"]}, NUMBER]}, 5),
        ({"type": ["string", "integer"], "enum": [5, 7]}, 5),
        ({"enum": [5, None]}, 5),
        ({"enum": ["5", 5]}, "5"),
        ({"const": 5}, 5),
        ({"const": "5"}, "5"),
        ({"$ref": "#/$defs/number"}, 5),
        ({"$ref": "#/$defs/a~1b~0c%25"}, 5),
        ({"$ref": "#/$defs/optional"}, 5),
        ({"anyOf": [{"$ref": "#/$defs/number"}, {"$ref": "#/$defs/number"}]}, 5),
        ({"$ref": "#/$defs/words"}, "5"),
        ({"$ref": "#/$defs/circle"}, "5"),
        ({"$ref": "#/$defs/there"}, "5"),
        ({"allOf": [{"$ref": "#/$defs/circle"}, NUMBER]}, 5),
        ({"$ref": "#/$defs/missing"}, "5"),
        ({"$ref": "#/$defs/number/type/deeper"}, "5"),
        ({"$ref": "http://127.0.0.1:9/number"}, "5"),
        ({"$ref": 7, "type": 7, "anyOf": {}, "enum": 7}, "5"),
        ({}, "5"),
        (True, "5"),
    ],
)
def test_a_value_is_a_string_only_where_the_schema_admits_one(schema: Any, expected: Any) -> None:
    found = {
        "number": NUMBER,
        "words": WORDS,
        "a/b~c%": NUMBER,
        "optional": {"anyOf": [{"$ref": "#/$defs/number"}, {"type": "null"}]},
        "circle": {"$ref": "#/$defs/circle"},
        "there": {"$ref": "#/$defs/back"},
        "back": {"anyOf": [{"$ref": "#/$defs/there"}]},
    }
    tool = ToolSchema("T", "", json.dumps({"properties": {"x": schema}, "$defs": found}))
    text = "<tool_call>\n<function=T>\n<parameter=x>\n5\n</parameter>\n</function>\n</tool_call>"
    assert parse_turn(text, [tool]).calls == (ParsedCall("T", {"x": expected}),)


def test_null_where_a_string_may_stand_is_the_string_none_and_does_not_come_back() -> None:
    tool = ToolSchema("T", "", json.dumps({"properties": {"x": {"anyOf": [WORDS, {"type": "null"}]}}}))
    text = "<tool_call>\n<function=T>\n<parameter=x>\nNone\n</parameter>\n</function>\n</tool_call>"
    assert parse_turn(text, [tool]).calls == (ParsedCall("T", {"x": "None"}),)
    assert comes_back(text, Message("assistant", "", (ToolCall("1", "T", '{"x": "None"}'),)), [tool])
    assert not comes_back(text, Message("assistant", "", (ToolCall("1", "T", '{"x": null}'),)), [tool])


@pytest.mark.parametrize("properties", [7, [], None, "x"])
def test_a_schema_that_is_none_says_nothing(properties: Any) -> None:
    tool = ToolSchema("T", "", json.dumps({"properties": properties}))
    text = "<tool_call>\n<function=T>\n<parameter=x>\n5\n</parameter>\n</function>\n</tool_call>"
    assert parse_turn(text, [tool]).calls == (ParsedCall("T", {"x": "5"}),)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("I look.", True),
        ("  I look.\n", True),
        ("a </tool_call> b", True),  # closes nothing
        ("a </think> b", False),
        ("<think>a</think> b", False),
        ("a <think> b", False),
        ("a <tool_call> b", False),
    ],
)
def test_prose_comes_back_too(content: str, expected: bool) -> None:
    message = Message("assistant", content, (ToolCall("1", "A", "{}"),))
    text = f'{content}\n<tool_call>\n{{"name": "A", "arguments": {{}}}}\n</tool_call>'
    assert comes_back(text, message, ()) is expected
    assert not comes_back("other" + text, message, ())


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
PLAIN = st.text("abcXYZ_-. \u00e9\u4e2d", min_size=1, max_size=6)
FORGED = st.lists(st.sampled_from([*PIECES, ">", "</tool_call", "<tool_call", "</parameter", "a"]), max_size=3)
NAME = st.one_of(PLAIN, PLAIN, PLAIN, st.text(max_size=6), FORGED.map("".join))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=6,
)
TYPES = {"string": str, "boolean": bool, "integer": int, "number": (int, float), "object": dict, "array": list}
OTHERS = ["null", "boolean", "integer", "number", "object", "array"] * 4 + ["string"]
VALUES = [None, True, False, 3, 0.5, [], {}, "x"]
LEAVES, TREES = ["type", "types", "enum", "const"], ["anyOf", "oneOf", "allOf", "$ref"]


@st.composite
def schemas(draw: st.DrawFn, value: Any, found: dict[str, Any], depth: int = 2) -> tuple[dict[str, Any], bool]:
    """A schema that admits a value, and whether it admits a string; `found` gets the definitions that it refers to."""
    kinds = [next((t for t, c in TYPES.items() if isinstance(value, c)), "null")]
    form = draw(st.sampled_from(LEAVES + [TREES, [*TREES, "nothing"], ["nothing"]][2 - depth]))
    if form == "type":
        return {"type": kinds[0]}, kinds == ["string"]
    if form == "types":
        kinds += draw(st.lists(st.sampled_from(OTHERS), max_size=2))
        return {"type": kinds}, "string" in kinds
    if form == "enum":
        values = draw(st.permutations([value, *draw(st.lists(st.sampled_from(VALUES), max_size=2))]))
        return {"enum": values}, any(isinstance(v, str) for v in values)
    if form == "const":
        return {"const": value}, isinstance(value, str)
    if form == "nothing":
        return {"description": "x"}, True
    inner, text = draw(schemas(value, found, depth - 1))
    if form == "allOf":
        other, texts = draw(schemas(value, found, depth - 1))
        return {"allOf": draw(st.permutations([inner, other]))}, text and texts
    if form == "$ref":
        name = f"{len(found)}{draw(st.sampled_from(['', '/', '~', '~1', '%', ' ']))}"
        reference = {"$ref": f"#/$defs/{quote(name.replace('~', '~0').replace('/', '~1'))}"}
        found[name] = draw(st.sampled_from([inner, {"allOf": [reference, inner]}]))  # the second is a circle
        return reference, text
    kinds = draw(st.lists(st.sampled_from(OTHERS), max_size=2))
    return {form: draw(st.permutations([inner, *({"type": k} for k in kinds)]))}, text or "string" in kinds


@st.composite
def turns(draw: st.DrawFn) -> tuple[Message, ToolSchema, set[str]]:
    """A turn of one to three calls of a tool whose schema admits the values; and which of them may be a string."""
    name, prose = draw(st.sampled_from([(NAME, TEXT), *[(PLAIN, st.sampled_from(["", "I look at it."]))] * 2]))
    named = {draw(name): draw(JSON) for _ in range(draw(st.integers(0, 3)))}
    found: dict[str, Any] = {}
    described = {k: draw(schemas(v, found)) for k, v in named.items() if draw(st.integers(0, 19))}
    properties = {k: schema for k, (schema, _) in described.items()}
    tool = ToolSchema(draw(name), "", json.dumps({"type": "object", "properties": properties, "$defs": found}))
    values = [named, *(dict(draw(st.permutations(sorted(named.items())))) for _ in range(draw(st.integers(0, 2))))]
    calls = tuple(ToolCall(str(i), tool.name, json.dumps(v)) for i, v in enumerate(values))
    return Message("assistant", draw(prose), calls), tool, {k for k in named if k not in described or described[k][1]}


def hopeless(message: Message, texts: set[str]) -> bool:
    """Say, from the values alone, that XML has no unambiguous form for a call; `texts` may be a string."""
    for call in message.tool_calls:
        arguments = json.loads(call.arguments)
        if any(not w or re.search(r"[>\n]|</?tool_call\Z", w) for w in (call.name, *arguments)):
            return True
        for key, value in arguments.items():
            text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
            if re.search(r"(?s)</?tool_call>|</parameter>.*<parameter=", text):
                return True
            if key in texts and not isinstance(value, str):
                return True  # nothing says that it is no text
    return False


@pytest.mark.parametrize("template", ["smollm2", "qwen3_5_nothink"])
def test_what_a_template_renders_comes_back_or_is_said_not_to(
    make_prompts: Callable[[str], ChatPrompts], template: str
) -> None:
    prompts = make_prompts(template)
    counts = {"back": 0, "not": 0}

    @settings(max_examples=1_000, deadline=None, database=None)  # `benchmarks.syntaxes`: 10,000 of 30 templates
    @given(turns(), st.integers(1, 28))
    def check(case: tuple[Message, ToolSchema, set[str]], missing: int) -> None:
        message, tool, texts = case
        text = prompts.reference_text(message)
        back = comes_back(text, message, [tool])
        counts["back" if back else "not"] += 1
        spelled = re.search("</?think>|<tool_call>", message.content)
        assert back == (not spelled and (template == "smollm2" or not hopeless(message, texts)))
        found = parse_turn(text, [tool])
        if back:
            assert [(c.name, c.arguments) for c in found.calls] == [
                (c.name, json.loads(c.arguments)) for c in message.tool_calls
            ]
            assert found.content == message.content.strip()
            assert "unterminated" in parse_turn(text[:-missing], [tool]).errors  # it ends inside the last call
        for cut in (len(text) // 2, len(text) - 1):  # a truncated turn is never the whole one
            assert not same_calls(parse_turn(text[:cut], [tool]), message)

    check()
    assert counts["back"] > 300
    assert counts["not"] > 5  # a few in a hundred; the examples are drawn anew each time
