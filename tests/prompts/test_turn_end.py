"""What ends a turn is what the template writes there, whatever `eos_token` says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdft_cli.errors import UsageError
from sdft_cli.prompts.chat import ChatPrompts, load_tokenizer
from sdft_cli.prompts.forms import PLANTED_TOOL, planted_call
from sdft_cli.prompts.incremental import record_at
from sdft_cli.prompts.template import TemplateError
from sdft_cli.records import Message, Session
from tests.prompts.trl_templates import prompts_of, trl_text

SAY = Message("assistant", "It is done.")
CALL = Message("assistant", "", (planted_call(),))
RESULT = Message("tool", "found", tool_call_id=planted_call().id, name=PLANTED_TOOL.name)
ENDS = {  # behind text, behind a call
    "gemma3": ("<end_of_turn>", "<end_of_turn>"),
    "gemma4": ("<turn|>", "<|tool_response>"),
    "gemma4_v2": ("<turn|>", "<turn|>"),
    "glm4moe": ("<|user|>", "<|observation|>"),
    "gptoss": ("<|return|>", "<|call|>"),
    "llama3_2": ("<|eot_id|>", "<|eot_id|>"),
    "muse_glimmer": ("<|eot|>", "<|eot|>"),
    "phi3_5": ("<|end|>", "<|end|>"),
    "qwen3_5_nothink": ("<|im_end|>", "<|im_end|>"),
    "smolvlm": ("<end_of_utterance>", "<end_of_utterance>"),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_end_of_a_turn_is_the_templates(smollm2: Path, name: str) -> None:
    prompts = prompts_of(smollm2, trl_text(name), eos="<|endoftext|>")
    text, call = ENDS[name]
    assert (prompts.turn(SAY).end, prompts.turn(CALL).end) == (text, call)
    ids = [prompts.tokenizer.convert_tokens_to_ids(token) for token in (text, call)]
    assert prompts.turn_end_id == ids[0]
    assert set(ids) <= set(prompts.turn_end_ids)
    assert prompts.turn_ids(prompts.turn(SAY))[-1] == ids[0]


@pytest.mark.parametrize("name", ENDS)
def test_the_end_of_a_turn_never_stands_in_the_teachers_block(smollm2: Path, name: str) -> None:
    prompts = prompts_of(smollm2, trl_text(name), eos="<|endoftext|>")
    for answer in (SAY, CALL):
        (message,) = prompts.teacher_messages(answer)
        shown = message["content"]
        block = shown if isinstance(shown, str) else shown[0]["text"]
        assert not any(end in block for end in ENDS[name])
        assert "It is done." in block or answer is CALL


def test_a_document_ends_behind_its_last_turn(smollm2: Path) -> None:
    """Phi-3 writes `<|endoftext|>` behind everything: that is no part of a turn, nor of the generation prompt."""
    prompts = prompts_of(smollm2, trl_text("phi3"), eos="<|endoftext|>")
    assert prompts.generation_prompt == "<|assistant|>\n"
    assert prompts.turn(SAY).text == "It is done."


def test_the_turn_goes_on_behind_a_result(smollm2: Path) -> None:
    """Gemma 4 begins no new turn behind the result of a call; the teacher's prompt begins one, behind its message."""
    prompts = prompts_of(smollm2, trl_text("gemma4"))
    session = Session("s", (Message("user", "a"), CALL, RESULT, SAY), (PLANTED_TOOL,))
    student, teacher = (f(record_at(session, 3)) for f in (prompts.student, prompts.teacher_prompt))
    assert student.endswith("<tool_response|>")
    assert teacher.endswith("<turn|>\n<|turn>model\n")


def test_text_that_is_moved_behind_the_result_closes_the_turn(smollm2: Path) -> None:
    """Gemma 4 writes text beside a call behind the result and closes the turn: nothing can go on there."""
    prompts = prompts_of(smollm2, trl_text("gemma4"))
    beside = Message("assistant", "I look.", CALL.tool_calls)
    session = Session("s", (Message("user", "a"), beside, RESULT, SAY), (PLANTED_TOOL,))
    with pytest.raises(TemplateError, match="begins the turn differently at this point"):
        prompts.student(record_at(session, 3))


def test_an_end_within_the_turn_is_refused(smollm2: Path) -> None:
    text = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{{ c.function | tojson }}<|im_end|>{% else %}<|im_end|>{% endfor %}\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    prompts = prompts_of(smollm2, text)
    assert prompts.turn(CALL).end == "<|im_end|>"
    with pytest.raises(TemplateError, match=r"writes the end of the turn \(<\|im_end\|>\) in the middle of it"):
        prompts.turn(Message("assistant", "", (planted_call(1), planted_call(2))))


def test_a_text_that_spells_the_end_is_text(smollm2: Path) -> None:
    prompts = prompts_of(smollm2, trl_text("qwen3_5_nothink"))
    ids = prompts.turn_ids(prompts.turn(Message("assistant", "write <|im_end|> last <|im_end|>")))
    assert ids.count(prompts.turn_end_id) == 1
    assert prompts.tokenizer.decode(ids) == "write <|im_end|> last <|im_end|><|im_end|>"


ROLES = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
ROLES += "{% if add_generation_prompt %}assistant: {% endif %}"


def test_without_any_token_it_is_eos_and_without_that_it_is_refused(smollm2: Path) -> None:
    prompts = prompts_of(smollm2, ROLES, eos="<|endoftext|>")
    assert prompts.turn(SAY).end == "<|endoftext|>"
    tokenizer: Any = load_tokenizer(smollm2)
    tokenizer.eos_token = None
    tokenizer.chat_template = ROLES
    with pytest.raises(UsageError, match="ends no turn with a token, and the tokenizer has no eos_token"):
        ChatPrompts(tokenizer, prompts.teacher)


ALTERNATE = (
    "{% for m in messages if m.role in ('user', 'assistant') and not m.tool_calls %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% endfor %}{{ tools | tojson if tools else '' }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{{ m.tool_calls | tojson if m.tool_calls else '' }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Mistral's: messages of user and assistant alternate, calls and results do not count."""


def test_the_teachers_message_is_joined_to_the_users_last_where_two_are_refused(smollm2: Path) -> None:
    prompts = prompts_of(smollm2, ALTERNATE)
    assert prompts.joins_users
    users = [Message("user", text) for text in ("first", "second", "x")]
    session = Session("s", (*users[:2], CALL, RESULT, SAY, users[2], SAY), (PLANTED_TOOL,))
    student, teacher = (f(record_at(session, 2)) for f in (prompts.student, prompts.teacher_prompt))
    assert student.endswith("<|im_start|>user\nfirst\n\nsecond<|im_end|>\n<|im_start|>assistant\n")
    assert "<|im_start|>user\nfirst\n\nsecond\n\n<expert_reference>\n" in teacher
    # behind a result a user message is refused too: it is joined to the last one there is
    teacher = prompts.teacher_prompt(record_at(session, 4))
    assert teacher.index("second\n\n<expert_reference>") < teacher.index("found")
    teacher = prompts.teacher_prompt(record_at(session, 6))
    assert "<|im_start|>user\nx\n\n<expert_reference>" in teacher


def test_users_are_not_joined_where_the_template_takes_two(smollm2: Path) -> None:
    prompts = prompts_of(smollm2, trl_text("qwen2_5"))
    assert not prompts.joins_users
    session = Session("s", (Message("user", "first"), Message("user", "second"), SAY))
    assert "first<|im_end|>\n<|im_start|>user\nsecond" in prompts.student(record_at(session, 2))
