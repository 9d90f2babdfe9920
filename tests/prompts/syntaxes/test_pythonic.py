from __future__ import annotations

import json
from typing import Any

import pytest

from sdft_cli.prompts.syntaxes.literals import (
    TornError,
    UnreadableError,
    escaped_string,
    read_value,
)
from sdft_cli.prompts.syntaxes.pythonic import (
    LFM2,
    LFM2_RAW,
    LLAMA_PYTHONIC,
    LLAMA_PYTHONIC_RAW,
    OLMO_3,
    OLMO_3_RAW,
)
from sdft_cli.prompts.syntaxes.turns import ParsedCall

VALUES: list[Any] = [None, True, False, 0, -7, 10**50, 0.5, -1e-07, 1e16, 1.5e300]
VALUES += ["", "a", "it's", '"', "\\", "\\n", "\n\t\r\x00\x1b", "é中🦓", "\xa0\u200b\u2028", "', b='"]
VALUES += [[], {}, [1, [2, {"a": [None, "x"]}]], {"k'": 'v"', "": {}, "a: b": [True]}]
NO_VALUES = ["nan", "Infinity", "x", "007", "1.2.3", "{1: 2}", "{'a' 1}", "[1 2]"]
NO_VALUES += ["'\\q'", "'\\U00110000'", "{'a': 1, 'a': 2}"]
TORN = ["", " ", "[", "[1,", "{'a'", "{'a':", "'abc", "'abc\\", "'abc\\u12", "12", "Tru", "-"]


def value_of(text: str) -> Any:
    value, end = read_value(text + ")", 0, escaped_string)
    assert end == len(text)
    return value


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_what_python_and_json_write_is_read_back(value: Any) -> None:
    for text in (repr(value), json.dumps(value), json.dumps(value, ensure_ascii=False)):
        assert repr(value_of(text)) == repr(value)


@pytest.mark.parametrize(
    "text",
    [
        "nan",
        "Infinity",
        "x",
        "01x",
        "1.2.3",
        "{1: 2}",
        "{'a' 1}",
        "[1 2]",
        "'\\q'",
        "'\\U00110000'",
        "{'a': 1, 'a': 2}",
    ],
)
def test_what_is_no_value(text: str) -> None:
    with pytest.raises(UnreadableError):
        read_value(text + ") ", 0, escaped_string)


@pytest.mark.parametrize("text", TORN)
def test_a_value_that_the_text_ends_in(text: str) -> None:
    with pytest.raises(TornError):
        read_value(text, 0, escaped_string)


def lfm2(calls: str) -> str:
    return f"<|tool_call_start|>[{calls}]<|tool_call_end|>"


def test_escaped_calls() -> None:
    text = "I do.\n" + lfm2(r"""mcp.x-y(path='it\'s', n=-3, flag=True, none=None, d={"a": [1, "b"]}), stop()""")
    turn = LFM2.parse(text, [])
    arguments = {"path": "it's", "n": -3, "flag": True, "none": None, "d": {"a": [1, "b"]}}
    assert (turn.content, turn.errors) == ("I do.", ())
    assert turn.calls == (ParsedCall("mcp.x-y", arguments), ParsedCall("stop", {}))
    assert LFM2.parse(lfm2("f( a = 'x' ,b= 2 )"), []).calls == (ParsedCall("f", {"a": "x", "b": 2}),)


def test_raw_calls() -> None:
    text = lfm2("""f(a='it's (a) "b"\\n', b=['it\\'s', None], c=''), g(a='x, y')""")
    calls = (ParsedCall("f", {"a": 'it\'s (a) "b"\\n', "b": ["it's", None], "c": ""}), ParsedCall("g", {"a": "x, y"}))
    assert LFM2_RAW.parse(text, []).calls == calls
    assert LFM2.parse(text, []).calls == ()


@pytest.mark.parametrize(
    ("calls", "errors"),
    [
        ("f(a=1, a=2)", ("not calls",)),
        ("f(1)", ("not calls",)),
        ("f(a=x)", ("not calls",)),
        ("f(a=1 b=2)", ("not calls",)),
        ("f(a=1) g()", ("not calls",)),
        ("[", ("not calls",)),
    ],
)
def test_what_is_no_call_is_named(calls: str, errors: tuple[str, ...]) -> None:
    turn = LFM2.parse(lfm2(calls), [])
    assert turn.errors == errors
    assert not turn.well_formed


def test_calls_that_were_cut_off() -> None:
    text = lfm2("f(a='x'), g(b='y')")
    for size in range(len("<|tool_call_start|>"), len(text)):
        turn = LFM2.parse(text[:size], [])
        assert turn.errors == ("unterminated",)
        assert turn.calls in [(), (ParsedCall("f", {"a": "x"}),)]
    cut = LFM2.parse(text[: text.index("g(")], [])
    assert (cut.calls, cut.begun) == ((ParsedCall("f", {"a": "x"}),), None)
    assert LFM2.parse("<|tool_call_start|>[f(a='x'), g(b='", []).begun == "g"
    assert LFM2.parse("<|tool_call_start|>[f(a='x')]", []).begun == "f"  # the mark that closes it is missing
    assert LFM2.parse("<|tool_call_start|>x<|tool_call_end|>y", []).errors == ("not a list",)


def test_olmo_calls_stand_a_line_each() -> None:
    text = 'Now.\n<function_calls>\nf(a="x\\n", b=true)\ng()\n</function_calls>'
    turn = OLMO_3.parse(text, [])
    assert (turn.content, turn.calls) == ("Now.", (ParsedCall("f", {"a": "x\n", "b": True}), ParsedCall("g", {})))
    raw = OLMO_3_RAW.parse("<function_calls>\nf(a='it's', b=null)\ng()\n</function_calls>", [])
    assert raw.calls == (ParsedCall("f", {"a": "it's", "b": None}), ParsedCall("g", {}))
    cut = OLMO_3.parse("<function_calls>\nf()\ng()\n", [])
    assert (cut.calls, cut.errors, cut.begun) == ((ParsedCall("f", {}),), ("unterminated",), "g")
    assert not cut.well_formed


def test_a_llama_turn_is_a_list_of_calls_or_prose() -> None:
    both = (ParsedCall("f", {"a": "x"}), ParsedCall("g", {}))
    assert LLAMA_PYTHONIC.parse("[f(a='x'), g()]", []).calls == both
    assert LLAMA_PYTHONIC.parse("I do.<|python_start|>[f(a='x'), g()]<|python_end|>", []).calls == both
    assert LLAMA_PYTHONIC_RAW.parse("[f(a='it's')]", []).calls == (ParsedCall("f", {"a": "it's"}),)
    for prose in ("[1] is a footnote", "see [f(x)]", "[f]", ""):
        assert (LLAMA_PYTHONIC.parse(prose, []).content, LLAMA_PYTHONIC.parse(prose, []).errors) == (prose, ())
    cut = LLAMA_PYTHONIC.parse("[f(a='x'), g(", [])
    assert (cut.calls, cut.errors, cut.begun) == (both[:1], ("unterminated",), "g")
