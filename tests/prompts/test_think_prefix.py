"""Student and teacher begin the turn alike, whatever stands before it; what else the teacher sees differently."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdft_cli.config import PrepareConfig, build
from sdft_cli.preparation.turns import turns_of
from sdft_cli.prompts.chat import ChatPrompts, load_tokenizer
from sdft_cli.prompts.incremental import TokenCounter, record_at
from sdft_cli.prompts.teacher import load_teacher_template
from sdft_cli.prompts.template import TemplateError
from sdft_cli.records import Message, RecordRow, Rejection, Session, ToolCall, ToolSchema
from tests.prompts.texts import student_text, teacher_text

EMPTY_BLOCK = "<think>\n\n</think>\n\n"
GENERATION = f"<|im_start|>assistant\n{EMPTY_BLOCK}"
THINKING = ["qwen3_5_nothink", "qwen3_5_think", "qwen3_6", "qwen3_8", "qwen3"]


def call(number: int) -> ToolCall:
    return ToolCall(f"c{number}", "Run", '{"x": "1"}')


def result(number: int) -> Message:
    return Message("tool", f"out {number}", tool_call_id=f"c{number}", name="Run")


SESSION = Session(
    "s",
    (
        Message("system", "Be brief."),
        Message("user", "first"),
        Message("assistant", "a <think> in <think>the text</think> itself", (call(1),)),  # 2: after a user message
        result(1),
        Message("assistant", "", (call(2), call(3))),  # 4: after a tool result
        result(2),
        result(3),
        Message("assistant", "half"),  # 7: after two results
        Message("assistant", "done"),  # 8: after assistant text
        Message("user", "second"),
        Message("user", "third"),
        Message("assistant", "", (call(4),)),  # 11: after two user messages
        result(4),
        Message("user", "and"),
        Message("assistant", "", (call(5),)),  # 14: after a user message behind a tool result
        result(5),
        Message("assistant", "end"),  # 16: after a tool result
    ),
    (ToolSchema("Run", "Run it.", '{"type": "object", "properties": {"x": {"type": "string"}}}'),),
)
TURNS = [2, 4, 7, 8, 11, 14, 16]


@pytest.fixture(scope="module", params=THINKING)
def thinking(request: pytest.FixtureRequest, make_prompts: Callable[[str], ChatPrompts]) -> ChatPrompts:
    return make_prompts(request.param)


@pytest.mark.parametrize("turn", TURNS)
def test_both_roles_begin_the_turn_with_the_empty_think_block(thinking: ChatPrompts, turn: int) -> None:
    """From the end of the last user or tool turn on, the ids are the same: the role, and a closed, empty block."""
    assert SESSION.assistant_turns() == TURNS
    record = record_at(SESSION, turn)
    expected = thinking.tokenizer.encode(f"\n{GENERATION}", add_special_tokens=False)
    for ids in (thinking.student_ids(record), thinking.teacher_ids(record)):
        end = len(ids) - ids[::-1].index(thinking.turn_end_id)
        assert ids[end:] == expected
    assert thinking.generation_prompt == GENERATION
    assert not thinking.reference_text(record.reference).startswith("<think>")


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("template", ["qwen3_5_nothink", "qwen3_5_think"])
def test_the_teacher_sees_the_same_history_but_for_empty_think_blocks(
    make_prompts: Callable[[str], ChatPrompts], template: str, turn: int
) -> None:
    """The template opens an empty block in assistant turns behind the last user message, and the teacher has one more.

    So those turns of the history, and nothing else, differ: the student's have the block, the teacher's have not. Each
    role reads its history as the model was taught to.
    """
    prompts = make_prompts(template)
    record = record_at(SESSION, turn)
    student, teacher = prompts.student(record), prompts.teacher_prompt(record)
    (message,) = prompts.teacher_messages(record.reference)
    shown = f"<|im_start|>user\n{message['content']}<|im_end|>\n{GENERATION}"
    assert student.endswith(GENERATION)
    assert teacher.endswith(shown)
    history, teachers = student.removesuffix(GENERATION), teacher.removesuffix(shown)
    last_user = max(i for i, m in enumerate(record.context) if m.role == "user")
    behind = sum(m.role == "assistant" for m in record.context[last_user:])
    assert history.count(EMPTY_BLOCK) == behind
    assert history.replace(EMPTY_BLOCK, "") == teachers
    if turn > 2:  # what a session says about thinking is text, and never taken for a block to drop
        for role in (student_text(prompts, record), teacher_text(prompts, record)):
            assert "a <think> in <think>the text</think> itself" in role


def prompts_with(smollm2: Path, after_results: str) -> ChatPrompts:
    """A template that begins a turn with an empty think block, but otherwise right after a tool result."""
    tokenizer: Any = load_tokenizer(smollm2)
    tokenizer.chat_template = (
        "{{ tools | tojson if tools }}{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}"
        "{{ m.tool_calls | tojson if m.tool_calls }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        f"{{% if messages[-1].role == 'tool' %}}{after_results}{{% else %}}<think>\n\n</think>\n\n{{% endif %}}"
        "{% endif %}"
    )
    return ChatPrompts(tokenizer, load_teacher_template())


@pytest.mark.parametrize("after_results", ["", "<think>\n"])
def test_turns_that_would_begin_differently_are_rejected_by_prepare(smollm2: Path, after_results: str) -> None:
    prompts = prompts_with(smollm2, after_results)
    with pytest.raises(TemplateError, match="begins the turn differently at this point"):
        prompts.student_ids(record_at(SESSION, 4))
    config = build(PrepareConfig, {"source": "x"})
    found = {o.turn_index: o for o in turns_of(SESSION, TokenCounter(prompts), config, None).outcomes}
    assert found.keys() == set(TURNS)
    for turn, outcome in found.items():
        if SESSION.messages[turn - 1].role == "tool":
            assert isinstance(outcome, Rejection)
            assert outcome.reason == "template_error"
        else:
            assert isinstance(outcome, RecordRow)


def test_the_same_template_without_the_difference_keeps_every_turn(smollm2: Path) -> None:
    prompts = prompts_with(smollm2, EMPTY_BLOCK)
    config = build(PrepareConfig, {"source": "x"})
    assert all(isinstance(o, RecordRow) for o in turns_of(SESSION, TokenCounter(prompts), config, None).outcomes)
