from __future__ import annotations

import json

import pytest

from sdft_cli.prompts.syntaxes.json_calls import COMMAND_R, GRANITE, LLAMA_JSON, MISTRAL_LIST, NEMOTRON, PHI_4
from sdft_cli.prompts.syntaxes.turns import ParsedCall, Syntax

READ = {"name": "Read", "arguments": {"p": "]</TOOLCALL>[TOOL_CALLS]"}}
CALLS = (ParsedCall("Read", {"p": "]</TOOLCALL>[TOOL_CALLS]"}), ParsedCall("Stop", {}))
LIST = json.dumps([READ, {"name": "Stop", "arguments": {}}])


@pytest.mark.parametrize(
    ("syntax", "opening", "closing"),
    [
        (MISTRAL_LIST, "[TOOL_CALLS] ", ""),
        (GRANITE, "<|tool_call|>", ""),
        (PHI_4, "<|tool_call|>", "<|/tool_call|>"),
        (NEMOTRON, "<TOOLCALL>", "</TOOLCALL>"),
    ],
)
def test_a_list_of_calls(syntax: Syntax, opening: str, closing: str) -> None:
    turn = syntax.parse(f"I read.\n{opening}{LIST}{closing}", [])
    assert (turn.content, turn.calls, turn.errors) == ("I read.", CALLS, ())
    cut = syntax.parse(f"{opening}{LIST}"[:-5], [])
    assert (cut.calls, cut.errors, cut.begun) == (CALLS[:1], ("unterminated",), "Stop")
    early = syntax.parse(f"{opening}{LIST}"[: len(opening) + 20], [])
    assert (early.calls, early.errors, early.begun) == ((), ("unterminated",), "Read")
    assert syntax.parse(opening, []).errors == ("unterminated",)
    if closing:  # a list that is not closed: its last call is not either
        open_list = syntax.parse(f"{opening}{LIST}", [])
        assert (open_list.calls, open_list.errors, open_list.begun) == (CALLS[:1], ("unterminated",), "Stop")


def test_what_is_no_list_of_calls_is_named() -> None:
    assert MISTRAL_LIST.parse("[TOOL_CALLS]Read{}", []).errors == ("not a list",)
    assert MISTRAL_LIST.parse('[TOOL_CALLS][{"name": "A", "arguments": {oops}}] and so on', []).errors == ("not JSON",)
    assert MISTRAL_LIST.parse('[TOOL_CALLS][{"name": "A", "arguments": "x"}]', []).errors == (
        "arguments are not an object",
    )
    assert MISTRAL_LIST.parse('[TOOL_CALLS][{"name": "A"} {"name": "B"}]', []).errors == ("not JSON",)
    assert PHI_4.parse('<|tool_call|>[{"x": 1}]<|/tool_call|>', []).errors == ("no name",)
    again = MISTRAL_LIST.parse('[TOOL_CALLS][{"name": "A", "argu[TOOL_CALLS][{"name": "B", "arguments": {}}]', [])
    assert (again.calls, again.errors) == ((), ("not JSON", "not JSON")) or again.calls == (ParsedCall("B", {}),)
    assert not again.well_formed


def test_command_r_has_other_keys_and_frames() -> None:
    action = (
        '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "Read", "parameters": {"p": "a"}}\n]<|END_ACTION|>'
    )
    turn = COMMAND_R.parse(f"<|START_THINKING|>I read {action}.<|END_THINKING|>{action}", [])
    assert turn.calls == (ParsedCall("Read", {"p": "a"}),)
    assert (turn.content, turn.thought, turn.errors) == ("", f"I read {action}.", ())
    assert COMMAND_R.parse("<|START_RESPONSE|>Done.<|END_RESPONSE|>", []).content == "Done."
    cut = COMMAND_R.parse(action[:80], [])
    assert (cut.errors, cut.begun) == (("unterminated",), "Read")


LLAMA = '{"name": "Read", "parameters": {"p": "a"}}'


@pytest.mark.parametrize(
    "text",
    [
        LLAMA,
        f"\n{LLAMA}\n",
        f"<|python_tag|>{LLAMA}",
        '{"type": "function", "name": "Read", "parameters": {"p": "a"}}',
        '{"name": "Read", "arguments": {"p": "a"}}',
    ],
)
def test_a_llama_turn_that_is_one_call(text: str) -> None:
    turn = LLAMA_JSON.parse(text, [])
    assert (turn.content, turn.calls, turn.errors) == ("", (ParsedCall("Read", {"p": "a"}),), ())


@pytest.mark.parametrize("between", ["; ", "\n", ", "])
def test_llama_calls_one_after_the_other(between: str) -> None:
    assert len(LLAMA_JSON.parse(f"{LLAMA}{between}{LLAMA}", []).calls) == 2
    cut = LLAMA_JSON.parse(f"{LLAMA}{between}{LLAMA}"[:-3], [])
    assert (len(cut.calls), cut.errors, cut.begun) == (1, ("unterminated",), "Read")


@pytest.mark.parametrize("text", ['{"answer": 5}', "{x}", "I would write " + LLAMA, '["a"]', ""])
def test_llama_prose_that_looks_like_json_is_prose(text: str) -> None:
    turn = LLAMA_JSON.parse(text, [])
    assert (turn.content, turn.calls, turn.errors) == (text, (), ())


@pytest.mark.parametrize("size", range(1, len(LLAMA)))
def test_a_llama_call_that_was_cut_off_is_unterminated(size: int) -> None:
    turn = LLAMA_JSON.parse(LLAMA[:size], [])
    assert (turn.calls, turn.errors) == ((), ("unterminated",))
    assert turn.begun == ("Read" if size > len('{"name": "Read') else None)


def test_a_broken_llama_call_is_named() -> None:
    assert LLAMA_JSON.parse('{"name": "Read", "parameters": {oops}} x', []).errors == ("not JSON",)
    assert LLAMA_JSON.parse('{"name": "Read", "parameters": {"a": 1, "a": 2}}', []).errors == ("not JSON",)
    assert LLAMA_JSON.parse('{"name": "Read", "parameters": 5}', []).errors == ("arguments are not an object",)
