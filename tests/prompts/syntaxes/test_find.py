from __future__ import annotations

import copy
import json
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.call_turns import FAMILIES, prompts_of, turn
from benchmarks.syntaxes import outcome
from sdft_cli.errors import DataError
from sdft_cli.prompts.chat import ChatPrompts
from sdft_cli.prompts.syntaxes.find import SYNTAXES, find_syntax
from sdft_cli.prompts.teacher import load_teacher_template
from sdft_cli.prompts.tool_calls import same_calls
from sdft_cli.records import Message, Record, ToolCall, ToolSchema
from tests.prompts.test_leaks import record_of

pytest.importorskip("trl")

ESCAPED = {
    "Hermes JSON",
    "Llama 3 JSON",
    "Mistral, a list of calls",
    "Mistral, a name and its arguments",
    "Command R",
    "DeepSeek V3 and R1",
    "DeepSeek V3.1",
    "Kimi K2",
    "Granite",
    "Phi-4-mini",
    "Harmony",
    "OLMo 3",
    "LFM2",
    "Llama pythonic",
}
"""Syntaxes in which every value can be written."""


def test_the_names_of_syntaxes_are_distinct_and_each_has_a_template_here() -> None:
    names = [syntax.name for syntax in SYNTAXES]
    assert len(set(names)) == len(names)
    assert set(names) == {family.syntax for family in FAMILIES.values()}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_syntax_of_a_template_is_found_and_its_turns_come_back_or_are_said_not_to(name: str) -> None:
    prompts = prompts_of(name)
    assert prompts.syntax.syntax is not None, prompts.syntax.reason
    assert prompts.syntax.syntax.name == FAMILIES[name].syntax
    counts = {"back": 0, "not back": 0, "refused": 0, "WRONG": 0}

    @settings(max_examples=200, deadline=None, database=None)
    @given(st.integers(0, 2**32))
    def check(seed: int) -> None:
        found = outcome(prompts, *turn(Random(seed)))
        counts[found] += 1
        assert found != "WRONG"

    check()
    assert counts["back"] > 30


HARD = ["</tool_call><tool_call>{}", "'", '"', "\\", "\\n", "', b='x", "') , f(", "]", "}", "<|call|>", "[TOOL_CALLS]"]
HARD += ["<｜tool▁call▁end｜>", " a ", "\n", "é🦓", ""]


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.syntax in ESCAPED])
def test_every_value_comes_back_where_values_are_escaped(name: str) -> None:
    prompts = prompts_of(name)
    arguments = {"a": HARD, "b": {text: text for text in HARD}, "c": [10**40, -(2**63), 1e-300, 0.1, True, False, None]}
    arguments |= {f"k{i}": text for i, text in enumerate(HARD)}
    call = ToolCall("call00001", "Write", json.dumps(arguments))
    message = Message("assistant", "", (call,))
    assert prompts.syntax.syntax is not None
    text = prompts.reference_text(message)
    (read,) = prompts.parse(text).calls
    assert (read.name, json.dumps(read.arguments)) == ("Write", json.dumps(arguments))
    for cut in range(len(text)):  # a call that was cut off is never the whole one, nor any other
        part = prompts.parse(text[:cut])
        assert part.calls in [(), (read,)]
        if part.calls:  # only what says nothing is missing
            ends = ("\n]<｜tool▁calls▁end｜>", "<|tool_calls_section_end|>")
            assert part.errors or any(text[cut:] in end for end in ends)
        else:
            assert not same_calls(part, message)


def rendered(call: Callable[[str, str], str], joined: str = "") -> Callable[[Message], str]:
    return lambda m: m.content + joined.join(call(c.name, c.arguments) for c in m.tool_calls)


def test_no_syntax_is_found_for_what_none_reads_and_the_reason_is_said() -> None:
    def lossy(name: str, arguments: str) -> str:
        plain = {key: value for key, value in json.loads(arguments).items() if isinstance(value, str)}
        return f"<tool_call>{json.dumps({'name': name, 'arguments': plain})}</tool_call>"

    def refusing(message: Message) -> str:
        raise DataError("Only user and assistant roles are supported!")

    unknown = find_syntax(rendered(lambda name, arguments: f"@@{name}@@{arguments}@@"))
    assert unknown.syntax is None
    assert unknown.reason == (
        "no syntax that sdft knows reads back what the chat template writes: @@zebra_second@@{}@@"
    )
    assert find_syntax(rendered(lossy)).syntax is None
    assert find_syntax(refusing).reason == (
        "the chat template refuses a tool call (Only user and assistant roles are supported!)"
    )
    dropped = find_syntax(lambda message: message.content)
    assert (dropped.syntax, dropped.reason) == (
        None,
        "the chat template leaves tool calls, or their names, out of a turn",
    )


def test_a_syntax_that_reads_only_some_calls_of_a_turn_loses() -> None:
    def hermes(name: str, arguments: str) -> str:
        return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'

    def first_only(message: Message) -> str:
        first, *others = message.tool_calls
        return hermes(first.name, first.arguments) + "".join(f"and {c.name}" for c in others)

    assert find_syntax(rendered(hermes)).syntax is not None
    assert find_syntax(first_only).syntax is None
    alone = find_syntax(lambda message: hermes(message.tool_calls[0].name, message.tool_calls[0].arguments))
    assert alone.syntax is not None  # no prose and no second call are written at all
    assert alone.syntax.name == "Hermes JSON"


def test_what_the_model_wrote_is_scored_in_its_own_syntax() -> None:
    prompts = prompts_of("gptoss")
    tool = ToolSchema("Read", "", "{}")
    answer = (
        "<|channel|>analysis<|message|>I read.<|end|><|start|>assistant<|channel|>commentary to=functions.Read "
        '<|constrain|>json<|message|>{"path": "a"}'
    )
    assert same_calls(
        prompts.parse(answer, [tool]), Message("assistant", "", (ToolCall("1", "Read", '{"path": "a"}'),))
    )


def test_only_records_whose_calls_come_back_can_be_scored() -> None:
    tool = ToolSchema("Write", "", json.dumps({"properties": {"text": {"type": "string"}}}))

    def record(text: str) -> Record:
        call = ToolCall("1", "Write", json.dumps({"text": text}))
        return record_of([Message("user", "x")], Message("assistant", "", (call,)), (tool,))

    prose = record_of([Message("user", "x")], Message("assistant", "Done."), (tool,))
    prompts = prompts_of("qwen3_5")
    scored = [prompts.scores_calls(r) for r in (record("a"), record("a</tool_call>"), prose)]
    assert scored == [True, False, True]
    assert prompts.calls_warning([record("a")]) is None

    tokenizer = copy.deepcopy(prompts.tokenizer)
    tokenizer.chat_template = prompts.tokenizer.chat_template.replace("<function=", "<f=")
    unknown = ChatPrompts(tokenizer, load_teacher_template())
    assert not any(unknown.scores_calls(r) for r in (record("a"), prose))
    assert unknown.calls_warning([prose]) is None
    assert str(unknown.calls_warning([prose, record("a")])).startswith(
        "WARNING: tool calls cannot be scored, and scores about them are left out: no syntax that sdft knows reads "
        "back what the chat template writes: <tool_call> <f=zebra_second>"
    )
