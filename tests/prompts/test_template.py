"""The text of a chat template, the date that it is told, and templates by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdft_cli.errors import UsageError
from sdft_cli.prompts.chat import ChatPrompts, load_tokenizer, open_prompts, prompts_for, template_facts
from sdft_cli.prompts.forms import Form, says_call
from sdft_cli.prompts.incremental import record_at
from sdft_cli.prompts.teacher import load_teacher_template
from sdft_cli.prompts.template import ChatTemplate, chat_templates, load_chat_template, own_template
from sdft_cli.prompts.unsaid import PLANTED_TOOL, Unsaid, find_unsaid
from sdft_cli.records import Message, Session
from tests.prompts.trl_templates import prompts_of

CLOCK = (
    "{{ strftime_now('%d %B %Y %H:%M') }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
)
CLOCK += "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
ASK = [{"role": "user", "content": "x"}]


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Any:
    return load_tokenizer(smollm2)


def test_a_template_that_asks_for_the_date_is_always_told_the_same(tokenizer: Any) -> None:
    template = ChatTemplate(tokenizer, CLOCK, date="2031-12-31")
    assert template.date == "2031-12-31"
    assert template.render(ASK).startswith("31 December 2031 00:00<|im_start|>user\nx")
    assert template.hash != ChatTemplate(tokenizer, CLOCK, date="2032-01-01").hash
    plain = ChatTemplate(tokenizer, date="2031-12-31")
    assert plain.date is None  # it does not ask, so that the date changes nothing
    assert plain.hash == ChatTemplate(tokenizer).hash


@pytest.mark.parametrize("date", ["2026-02-30", "yesterday", "20260101x"])
def test_a_date_that_is_none_is_refused(tokenizer: Any, date: str) -> None:
    with pytest.raises(UsageError, match="is no date: write it as YYYY-MM-DD"):
        ChatTemplate(tokenizer, CLOCK, date=date)


def test_of_several_templates_the_one_for_tools_is_taken_for_everything(smollm2: Path) -> None:
    tokenizer: Any = load_tokenizer(smollm2)
    own = tokenizer.chat_template
    tokenizer.chat_template = {"default": "{{ raise_exception('not this one') }}", "tool_use": own}
    prompts = ChatPrompts(tokenizer, load_teacher_template())
    assert prompts.template.text == own
    assert prompts.reference_text(Message("assistant", "yes")) == "yes"  # rendered without tools
    tokenizer.chat_template = {"default": own, "rag": "x"}
    assert own_template(tokenizer) == own
    tokenizer.chat_template = {"rag": "x"}
    with pytest.raises(UsageError, match=r"no chat template for tools or for all \(it has rag\): .* --chat-template"):
        own_template(tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(UsageError, match=r"has no chat template: use an instruct model, or name .*chatml-hermes"):
        own_template(tokenizer)


@pytest.mark.parametrize("name", chat_templates())
def test_every_template_that_ships_says_everything(tokenizer: Any, name: str) -> None:
    template = ChatTemplate(tokenizer, load_chat_template(name))
    assert says_call(template, Form(), [PLANTED_TOOL.as_openai()])
    assert find_unsaid(template, Form()) == Unsaid(frozenset(), frozenset())


@pytest.mark.parametrize("name", [name for name in chat_templates() if name != "smollm2"])
def test_templates_that_ship_write_hermes_calls(smollm2: Path, name: str) -> None:
    prompts = prompts_of(smollm2, load_chat_template(name))
    assert prompts.syntax.syntax is not None
    assert prompts.syntax.syntax.name == "Hermes JSON"


def test_a_token_that_never_comes_out_is_no_reason(smollm2: Path, tmp_path: Path) -> None:
    """Templates of multimodal siblings name tokens for pictures, in branches that text does not reach."""
    file = tmp_path / "mine.jinja"
    file.write_text("{% if images is defined %}<|image|>{% endif %}" + load_chat_template("smollm2"))
    assert prompts_for(str(smollm2), "repeat", str(file)).unsaid == Unsaid(frozenset(), frozenset())
    file.write_text("<|image|>" + load_chat_template("smollm2"))
    with pytest.raises(UsageError, match=r"mine.jinja writes <\|image\|>, and the model has no such token"):
        prompts_for(str(smollm2), "repeat", str(file))


def test_a_template_of_another_family_is_refused(smollm2: Path) -> None:
    assert prompts_for(str(smollm2), "repeat", "chatml-hermes").template.name == "chatml-hermes"
    with pytest.raises(UsageError, match=r"llama3-hermes writes <\|end_header_id\|>, <\|eot_id\|>, .* no such token"):
        prompts_for(str(smollm2), "repeat", "llama3-hermes")


def test_templates_by_name_and_by_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(CLOCK)
    assert load_chat_template(str(file)) == CLOCK
    with pytest.raises(UsageError, match=r"nope is no \.jinja file and none of those that ship .*chatml-hermes"):
        load_chat_template("nope")
    with pytest.raises(UsageError, match=r"cannot be read \(no such file"):
        load_chat_template(str(tmp_path / "none.jinja"))
    file.write_bytes(b"\xff\xfe{{")
    with pytest.raises(UsageError, match="cannot be read"):
        load_chat_template(str(file))
    file.write_text("{% for %}")
    with pytest.raises(UsageError, match=r"mine\.jinja is no Jinja \(line 1: .*\): mend it"):
        load_chat_template(str(file))


def test_later_stages_render_with_the_template_and_the_date_of_the_dataset(smollm2: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(CLOCK)
    prompts = prompts_for(str(smollm2), "repeat", str(file), "2030-05-06")
    facts = template_facts(prompts)
    assert facts == {"chat_template": {"name": "mine.jinja", "text": CLOCK}, "template_date": "2030-05-06"}
    file.unlink()
    manifest = {
        "teacher_template": "repeat",
        "config": {"model": "m"},
        "fingerprint": prompts.fingerprint(),
        **facts,
    }
    session = Session("s", (Message("user", "a"), Message("assistant", "b")))
    later = open_prompts(str(smollm2), manifest)
    assert later.student_ids(record_at(session, 1)) == prompts.student_ids(record_at(session, 1))
    assert "06 May 2030" in later.encoder.control.restore(later.student(record_at(session, 1)))
