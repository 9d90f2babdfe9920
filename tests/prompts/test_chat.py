from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdft_cli.errors import DataError, UsageError
from sdft_cli.prompts.chat import ChatPrompts, load_tokenizer, open_prompts
from sdft_cli.prompts.teacher import TeacherTemplate, load_teacher_template
from sdft_cli.prompts.template import TemplateError
from sdft_cli.records import Message, Record, RecordRow, Session, ToolCall, ToolSchema
from tests.prompts.texts import student_text, teacher_text

READ = ToolSchema(
    "Read",
    "Read a file.",
    json.dumps({"type": "object", "properties": {"file_path": {}, "limit": {}}, "required": ["file_path"]}),
    "declared",
)
SESSION = Session(
    "s",
    (
        Message("user", "Show a.py"),
        Message("assistant", "I read it.", (ToolCall("c", "Read", '{"file_path": "é\\n"}'),)),
        Message("tool", "x = 1", tool_call_id="c", name="Read"),
        Message("assistant", "It sets x."),
    ),
    (READ,),
)
SYSTEM = (
    "<|im_start|>system\nYou are a coding agent\n\nTools:\nRead(file_path)\n\n"
    "To use a tool, reply with a call like this:\n<tool_call>\n"
    '{"name": "Read", "arguments": {"file_path": "README.md"}}\n</tool_call><|im_end|>\n'
)
CALL = '<tool_call>\n{"name": "Read", "arguments": {"file_path": "é\\n"}}\n</tool_call>'


def record(turn: int) -> Record:
    return Record(RecordRow(f"s/{turn}", "s", turn, 0, 0, 0, False), SESSION)


@pytest.fixture(scope="module")
def prompts(smollm2: Path) -> ChatPrompts:
    return ChatPrompts(
        load_tokenizer(smollm2), TeacherTemplate("t", "<expert_reference>\n{reference}\n</expert_reference>\nGo.")
    )


def test_student_prompt_is_the_conversation_and_the_tools(prompts: ChatPrompts) -> None:
    assert student_text(prompts, record(1)) == (
        SYSTEM + "<|im_start|>user\nShow a.py<|im_end|>\n<|im_start|>assistant\n"
    )
    assert student_text(prompts, record(3)) == (
        SYSTEM
        + "<|im_start|>user\nShow a.py<|im_end|>\n"
        + f"<|im_start|>assistant\nI read it.\n{CALL}<|im_end|>\n"
        + "<|im_start|>tool\nx = 1<|im_end|>\n<|im_start|>assistant\n"
    )


def test_teacher_prompt_adds_one_last_message_with_the_expert_turn(prompts: ChatPrompts) -> None:
    student = student_text(prompts, record(1)).removesuffix("<|im_start|>assistant\n")
    assert teacher_text(prompts, record(1)) == (
        student
        + f"<|im_start|>user\n<expert_reference>\nI read it.\n{CALL}\n</expert_reference>\nGo.<|im_end|>\n"
        + "<|im_start|>assistant\n"
    )


def test_reference_is_what_the_model_would_write_and_ends_the_turn(prompts: ChatPrompts) -> None:
    ids = prompts.reference_ids(record(3))
    assert ids == [*prompts.tokenizer.encode("It sets x."), 2]
    assert prompts.tokenizer.decode(ids) == "It sets x.<|im_end|>"
    assert prompts.reference_text(Message("assistant", "  keep\n\n")) == "  keep\n\n"


def test_ids_are_those_of_the_rendered_text(prompts: ChatPrompts) -> None:
    for turn in (1, 3):
        whole = prompts.tokenizer.encode(teacher_text(prompts, record(turn)), add_special_tokens=False)
        assert prompts.teacher_ids(record(turn)) == whole
        assert whole.count(1) == whole.count(2) + 1  # <|im_start|>, <|im_end|>


def test_the_teacher_can_be_shown_another_turn(prompts: ChatPrompts) -> None:
    other = Message("assistant", "Something else.")
    text = prompts.encoder.control.restore(prompts.teacher_prompt(record(1), other))
    own = prompts.reference_text(record(1).reference)
    assert text == teacher_text(prompts, record(1)).replace(own, "Something else.")
    assert prompts.tokenizer.decode(prompts.teacher_ids(record(1), other)) == text


def test_think_prefix_is_the_same_on_both_sides(smollm2: Path) -> None:
    """Templates of thinking models open an empty think block; the reference must not repeat it."""
    tokenizer: Any = load_tokenizer(smollm2)
    tokenizer.chat_template = (
        "{{ tools | tojson if tools }}{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}"
        "{{ m.tool_calls | tojson if m.tool_calls }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    )
    prompts = ChatPrompts(tokenizer, load_teacher_template())
    assert student_text(prompts, record(1)).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert teacher_text(prompts, record(1)).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert prompts.reference_text(Message("assistant", "yes")) == "yes"


def test_a_template_that_refuses_is_an_error_of_the_record(smollm2: Path) -> None:
    tokenizer: Any = load_tokenizer(smollm2)
    tokenizer.chat_template = "{{ raise_exception('No user query found') }}"
    with pytest.raises(TemplateError, match="No user query found"):
        student_text(ChatPrompts(tokenizer, load_teacher_template()), record(1))


def test_a_tokenizer_that_loses_spaces_is_refused(smollm2: Path, tmp_path: Path) -> None:
    """As some classes of transformers 5 build it: the marks of spaces are dropped."""
    document = json.loads((smollm2 / "tokenizer.json").read_text())
    document["decoder"] = {"type": "Replace", "pattern": {"String": "\u0120"}, "content": ""}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    for name in ("tokenizer_config.json", "chat_template.jinja", "config.json"):
        (tmp_path / name).write_bytes((smollm2 / name).read_bytes())
    with pytest.raises(UsageError, match=r"makes \"It'shere,inafile:x=\[1,2\].\" of .*: correct tokenizer_class"):
        load_tokenizer(tmp_path)


def test_a_dataset_of_another_tokenizer_is_refused(prompts: ChatPrompts, smollm2: Path) -> None:
    manifest = {
        "teacher_template": "repeat",
        "config": {"model": "other/model"},
        "fingerprint": {**ChatPrompts(prompts.tokenizer, load_teacher_template("repeat")).fingerprint()},
    }
    assert open_prompts(str(smollm2), manifest).teacher.name == "repeat"
    manifest["fingerprint"]["chat_template"] = "x"
    with pytest.raises(DataError, match=r"prepared for other/model: its chat template differ"):
        open_prompts(str(smollm2), manifest)
