from __future__ import annotations

from collections.abc import Callable

import pytest

from sdft_cli.prompts.syntaxes.named_json import DEEPSEEK_V3, DEEPSEEK_V31, KIMI, MISTRAL_ARGS
from sdft_cli.prompts.syntaxes.turns import ParsedCall, Syntax

BEGIN, SEP, END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
FIRST, LAST = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
HARD = '{"p": "[TOOL_CALLS]<｜tool▁call▁end｜>```<|tool_call_end|>"}'
VALUE = {"p": "[TOOL_CALLS]<｜tool▁call▁end｜>```<|tool_call_end|>"}


def v3(arguments: str, name: str = "Read") -> str:
    return f"{BEGIN}function{SEP}{name}\n```json\n{arguments}\n```{END}"


def v31(arguments: str, name: str = "Read") -> str:
    return f"{BEGIN}{name}{SEP}{arguments}{END}"


def kimi(arguments: str, name: str = "Read") -> str:
    return f"<|tool_call_begin|>functions.{name}:0<|tool_call_argument_begin|>{arguments}<|tool_call_end|>"


def mistral(arguments: str, name: str = "Read") -> str:
    return f"[TOOL_CALLS]{name}[ARGS]{arguments}"


Write = Callable[..., str]
WRITERS = [
    (DEEPSEEK_V3, v3, len("```json\n{}\n```<｜tool▁call▁end｜>")),
    (DEEPSEEK_V31, v31, len("{}<｜tool▁call▁end｜>")),
    (KIMI, kimi, len("{}<|tool_call_end|>")),
    (MISTRAL_ARGS, mistral, len("{}")),
]


@pytest.mark.parametrize(("syntax", "write", "behind_name"), WRITERS, ids=lambda x: getattr(x, "name", ""))
def test_calls_by_name(syntax: Syntax, write: Write, behind_name: int) -> None:
    two = "So." + write(HARD) + write("{}", "Stop")
    turn = syntax.parse(two, [])
    assert (turn.content, turn.errors) == ("So.", ())
    assert turn.calls == (ParsedCall("Read", VALUE), ParsedCall("Stop", {}))
    for missing in range(1, behind_name + 1):
        cut = syntax.parse(two[:-missing], [])
        assert (cut.calls, cut.errors, cut.begun) == (turn.calls[:1], ("unterminated",), "Stop")
    assert syntax.parse(write("[1]"), []).errors == ("arguments are not an object",)
    assert syntax.parse(write('{"a": 1, "a": 2}'), []).errors == ("not JSON",)
    assert syntax.parse(write("{oops}"), []).errors == ("not JSON",)


def test_the_frame_of_all_calls_is_no_prose() -> None:
    turn = DEEPSEEK_V3.parse(f"<think>a</think>So.{FIRST}{v3('{}')}\n{v3('{}')}{LAST}", [])
    assert (turn.thought, turn.content, len(turn.calls)) == ("a", "So.", 2)
    assert DEEPSEEK_V31.parse(f"a</think>So.{FIRST}{v31('{}')}{LAST}", []).content == "So."
    assert KIMI.parse(f"<|tool_calls_section_begin|>{kimi('{}')}<|tool_calls_section_end|>", []).content == ""


def test_names_that_are_cut_off() -> None:
    for syntax, text in (
        (MISTRAL_ARGS, "[TOOL_CALLS]Re"),
        (DEEPSEEK_V3, f"{BEGIN}function{SEP}Re"),
        (KIMI, "<|tool_call_begin|>func"),
    ):
        assert (syntax.parse(text, []).errors, syntax.parse(text, []).begun) == (("unterminated",), None)


def test_mistral_may_write_an_id() -> None:
    call = "[TOOL_CALLS]Read[CALL_ID]abcdefgh1[ARGS]{}"
    assert MISTRAL_ARGS.parse(f"[THINK]x[/THINK]{call}", []).calls == (ParsedCall("Read", {}),)
    assert MISTRAL_ARGS.parse('[TOOL_CALLS][{"name": "Read", "arguments": {}}]', []).calls == ()
