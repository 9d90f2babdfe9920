from __future__ import annotations

import pytest

from sdft_cli.prompts.syntaxes.harmony import HARMONY
from sdft_cli.prompts.syntaxes.turns import ParsedCall

HARD = '{"p": "<|call|><|end|><|start|>assistant"}'
READ = ParsedCall("Read", {"p": "<|call|><|end|><|start|>assistant"})
THOUGHT = "<|channel|>analysis<|message|>I read.<|end|><|start|>assistant"


@pytest.mark.parametrize(
    "header",
    [
        " to=functions.Read<|channel|>commentary json<|message|>",
        "<|channel|>commentary to=functions.Read <|constrain|>json<|message|>",
        "<|channel|>commentary to=functions.Read<|message|>",
        "<|start|>assistant<|channel|>analysis to=functions.Read code<|message|>",
    ],
)
@pytest.mark.parametrize("end", ["", "<|call|>"])
def test_a_call(header: str, end: str) -> None:
    turn = HARMONY.parse(header + HARD + end, [])
    assert (turn.content, turn.thought, turn.calls, turn.errors) == ("", "", (READ,), ())


def test_thought_prose_and_calls_are_messages() -> None:
    call = f"<|channel|>commentary to=functions.Read <|constrain|>json<|message|>{HARD}<|call|>"
    turn = HARMONY.parse(f"{THOUGHT}<|channel|>commentary<|message|>I look.<|end|><|start|>assistant{call}", [])
    assert (turn.thought, turn.content, turn.calls) == ("I read.", "I look.", (READ,))
    answer = HARMONY.parse(f"{THOUGHT}<|channel|>final<|message|>All is well.<|return|>", [])
    assert (answer.thought, answer.content, answer.calls) == ("I read.", "All is well.", ())
    for text in ("just text", "so to=functions.Read is how", "x\n to=functions.Read<|channel|>"):
        assert (HARMONY.parse(text, []).content, HARMONY.parse(text, []).errors) == (text, ())


@pytest.mark.parametrize(
    ("text", "errors", "begun"),
    [
        (" to=functions.Read<|channel|>commentary json<|message|>{oops}<|call|>", ("not JSON",), None),
        (" to=functions.Read<|channel|>commentary json<|message|>{} {}<|call|>", ("not JSON",), None),
        (" to=functions.Read<|channel|>commentary json<|message|>[1]<|call|>", ("arguments are not an object",), None),
        (' to=functions.Read<|channel|>commentary json<|message|>{"p": "<|call|>', ("unterminated",), "Read"),
        (" to=functions.Read<|channel|>commentary json<|message|>", ("unterminated",), "Read"),
        (" to=functions.Read<|channel|>comm", ("unterminated",), "Read"),
        (" to=functions.Re", (), None),
    ],
)
def test_what_is_no_call_is_named(text: str, errors: tuple[str, ...], begun: str | None) -> None:
    turn = HARMONY.parse(text, [])
    assert (turn.calls, turn.errors, turn.begun) == ((), errors, begun)
    assert HARMONY.parse(f"{THOUGHT}{text}", []).errors == errors
