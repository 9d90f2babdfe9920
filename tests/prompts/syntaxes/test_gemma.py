from __future__ import annotations

import pytest

from sdft_cli.prompts.syntaxes.gemma import FUNCTION_GEMMA, GEMMA_4
from sdft_cli.prompts.syntaxes.turns import ParsedCall

Q = '<|"|>'


def test_calls_before_and_behind_prose() -> None:
    text = (
        f"<|channel>thought\nhm<channel|>So.<|tool_call>call:Read{{a b:{Q}it's }}, x:1{Q},n:-1e-07,t:true,z:null,"
        f"l:[{Q}x{Q},2,[]],o:{{k:{Q}{Q},{Q}q{Q}:None}}}}<tool_call|><|tool_call>call:Stop{{}}<tool_call|>"
        " Done.<|tool_response>"
    )
    turn = GEMMA_4.parse(text, [])
    arguments = {"a b": "it's }, x:1", "n": -1e-07, "t": True, "z": None, "l": ["x", 2, []], "o": {"k": "", "q": None}}
    assert turn.calls == (ParsedCall("Read", arguments), ParsedCall("Stop", {}))
    assert (turn.content, turn.thought, turn.errors) == ("So. Done.", "\nhm", ())


@pytest.mark.parametrize(
    ("text", "errors", "begun"),
    [
        (f"<|tool_call>call:Read{{a:{Q}x", ("unterminated",), "Read"),
        (f"<|tool_call>call:Read{{a:{Q}x{Q}}}", ("unterminated",), "Read"),
        ("<|tool_call>call:Read{a:<|", ("unterminated",), "Read"),
        ("<|tool_call>call:Re", ("unterminated",), None),
        ("<|tool_call>Read{}<tool_call|>", ("no name",), None),
        ("<|tool_call>call:Read{a:x}<tool_call|>", ("not arguments",), None),
        ("<|tool_call>call:Read{a:1,a:2}<tool_call|>", ("not arguments",), None),
    ],
)
def test_what_is_no_call_is_named(text: str, errors: tuple[str, ...], begun: str | None) -> None:
    turn = GEMMA_4.parse(text, [])
    assert (turn.calls, turn.errors, turn.begun) == ((), errors, begun)


def test_function_gemma_has_other_marks() -> None:
    text = "<start_function_call>call:Read{p:<escape>a,b}<escape>,n:3}<end_function_call><start_function_response>"
    turn = FUNCTION_GEMMA.parse(text, [])
    assert (turn.content, turn.calls) == ("", (ParsedCall("Read", {"p": "a,b}", "n": 3}),))
