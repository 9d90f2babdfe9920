"""What a chat template drops is known: of every template that TRL ships, and of made-up ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdft_cli.errors import DataError
from sdft_cli.prompts.chat import ChatPrompts, open_prompts
from sdft_cli.prompts.forms import PLANTED_TOOL, Form, find_form, planted_call
from sdft_cli.prompts.incremental import record_at
from sdft_cli.prompts.unsaid import TemplateLoses, Unsaid, parts_of
from sdft_cli.records import Message, Session, ToolCall
from tests.prompts.trl_templates import prompts_of, trl_text

CALLS = {"calls", "parallel", "beside"}
DROPS: dict[str, tuple[set[str], set[str]]] = {
    # before a turn, of the turn itself; what a template refuses by itself is not among them
    "cohere": ({"tools"}, CALLS),
    "cohere2": ({"tools", "results"} | CALLS, CALLS),
    "deepseek_r1_distill": ({"tools", "beside"}, {"beside"}),
    "deepseekv3": ({"tools"}, set()),
    "gemma": ({"tools"}, CALLS),
    "gemma3": ({"tools"}, CALLS),
    "gemma4": (set(), set()),
    "glm4moe": (set(), set()),
    "gptoss": ({"beside", "later_system", "parallel"}, {"parallel"}),
    "idefics3": ({"tools"} | CALLS, CALLS),
    "lfm2": (CALLS, CALLS),
    "lfm2_2_5": (set(), set()),
    "llama3": ({"tools"} | CALLS, CALLS),
    "llama3_1": ({"beside"}, {"beside"}),
    "llama3_2": ({"beside"}, {"beside"}),
    "llava_next": ({"tools"}, CALLS),
    "muse_glimmer": ({"beside"}, {"beside"}),
    "nemotron_3_nano": (set(), set()),
    "phi3": ({"tools", "results"} | CALLS, CALLS),
    "phi3_5": ({"tools", "results"} | CALLS, CALLS),
    "qwen2_5": (set(), set()),
    "qwen2_5_vl": ({"tools"} | CALLS, CALLS),
    "qwen3": (set(), set()),
    "qwen3_5_nothink": (set(), set()),
    "qwen3_vl": ({"later_system"}, set()),
    "smolvlm": ({"tools"} | CALLS, CALLS),
}


@pytest.mark.parametrize("name", DROPS)
def test_what_the_templates_of_trl_drop(smollm2: Path, name: str) -> None:
    found = prompts_of(smollm2, trl_text(name)).unsaid
    assert found == Unsaid(*map(frozenset, DROPS[name]))


def conversation(*answer: Message) -> Session:
    result = Message("tool", "found", tool_call_id=planted_call().id, name=PLANTED_TOOL.name)
    call = Message("assistant", "", (planted_call(),))
    return Session("s", (Message("user", "a"), call, result, *answer), (PLANTED_TOOL,))


HUB = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The pattern of many templates: text only."""


def test_a_template_of_text_only_takes_no_turn_with_tools(smollm2: Path) -> None:
    """Its calls were rendered away, and the turn was a single token that ends it."""
    prompts = prompts_of(smollm2, HUB)
    session = conversation(Message("assistant", "It is found."))
    for turn in (1, 3):
        with pytest.raises(TemplateLoses, match="does not write the tools that are offered or tool calls"):
            prompts.student_ids(record_at(session, turn))
        with pytest.raises(TemplateLoses):
            prompts.teacher_ids(record_at(session, turn))
    ask, say = Message("user", "a"), Message("assistant", "b")
    talk = Session("s", (ask, say, ask, say))
    assert prompts.student_ids(record_at(talk, 3))


def test_only_turns_with_what_is_dropped_are_refused(smollm2: Path) -> None:
    """Llama 3.2 writes a call and drops the text beside it: those turns, and what follows them, are refused."""
    prompts = prompts_of(smollm2, trl_text("llama3_2"))
    beside = Message("assistant", "I look.", (ToolCall("c2", PLANTED_TOOL.name, '{"quokka_key": "v"}'),))
    result = Message("tool", "found", tool_call_id="c2", name=PLANTED_TOOL.name)
    done = Message("assistant", "Done.")
    session = conversation(done, Message("user", "go on"), beside, result, done)
    for turn in (1, 3):
        assert prompts.teacher_ids(record_at(session, turn))
    for turn in (5, 7):
        with pytest.raises(TemplateLoses, match=r"^The chat template does not write text beside a tool call\.$"):
            prompts.teacher_ids(record_at(session, turn))


def test_a_part_that_is_dropped_in_one_place_only_is_found(smollm2: Path) -> None:
    """A template may keep a call that was just made, and drop it when the conversation has gone on."""
    late = "{% if loop.index0 >= messages | length - 2 %}{{ m.tool_calls | tojson if m.tool_calls else '' }}{% endif %}"
    text = HUB.replace("{{ m.content }}", "{{ m.content }}" + late)
    found = prompts_of(smollm2, "{{ tools | tojson if tools else '' }}" + text).unsaid
    assert found.prompt >= {"calls"}
    assert "calls" not in found.reference


def test_what_is_dropped_behind_a_system_message_only_is_found(smollm2: Path) -> None:
    """A template may take tools only behind a system message; without one it refuses, and nothing seems to be lost."""
    refuses = "{% if tools and messages[0].role != 'system' %}{{ raise_exception('say who you are') }}{% endif %}"
    found = prompts_of(smollm2, refuses + "{{ tools | tojson if tools else '' }}" + HUB).unsaid
    assert found.prompt == {"calls", "parallel", "beside"}
    assert "calls" in found.reference


def test_an_older_dataset_with_such_records_is_refused_before_anything_is_loaded(smollm2: Path) -> None:
    prompts = prompts_of(smollm2, HUB)
    manifest = {
        "teacher_template": "expert_reference",
        "config": {"model": "m"},
        "chat_template": {"name": "hub", "text": HUB},
        "fingerprint": ChatPrompts(prompts.tokenizer, prompts.teacher, prompts.template).fingerprint(),
    }
    manifest["fingerprint"] |= {"tokenizer": open_fingerprint(smollm2)}
    with pytest.raises(DataError, match=r"cannot be used: The chat template does not write the tools .* again\.$"):
        open_prompts(str(smollm2), manifest, records=[record_at(conversation(), 1)])


def open_fingerprint(smollm2: Path) -> str:
    from sdft_cli.prompts.chat import load_tokenizer
    from sdft_cli.resources import text_hash

    return text_hash(load_tokenizer(smollm2).backend_tokenizer.to_str())


def test_parts_of_a_conversation() -> None:
    rule, ask, say = Message("system", "r"), Message("user", "a"), Message("assistant", "s")
    assert parts_of([rule, ask, say]) == {"system", "said"}
    assert parts_of([rule, rule, ask, ask]) == {"system", "users"}
    assert parts_of([ask, rule, say, say]) == {"later_system", "said", "answers"}
    both = Message("assistant", " ", (planted_call(1), planted_call(2)))
    assert parts_of([ask, both]) == {"calls", "parallel"}
    assert parts_of([ask, Message("assistant", "x", (planted_call(),)), Message("tool", "r")]) == {
        "calls",
        "beside",
        "results",
    }


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("qwen2_5", Form()),
        ("deepseekv3", Form(text_arguments=True)),
        ("deepseek_r1_distill", Form(text_arguments=True, null_content=True)),
        ("smolvlm", Form(parts=True)),
    ],
)
def test_the_form_that_a_template_reads(smollm2: Path, name: str, form: Form) -> None:
    assert find_form(prompts_of(smollm2, trl_text(name)).template) == form


def test_a_template_that_wants_ids_of_nine_characters_gets_them(smollm2: Path) -> None:
    text = HUB.replace(
        "{{ m.content }}",
        "{{ m.content }}{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}{{ raise_exception('nine') }}"
        "{% endif %}[{{ c.id }}]{{ c.function | tojson }}{% endfor %}{% if m.role == 'tool' %}[{{ m.tool_call_id }}]"
        "{% endif %}",
    )
    prompts = prompts_of(smollm2, "{{ tools | tojson if tools else '' }}" + text)
    assert prompts.form == Form(short_ids=True)
    student = prompts.student(record_at(conversation(Message("assistant", "x")), 3))
    ids = [part.split("]")[0] for part in student.split("[")[1:] if part[9:10] == "]"]
    assert len(ids) == 2
    assert len(set(ids)) == 1


def test_a_template_that_writes_python_is_given_json(smollm2: Path) -> None:
    text = HUB.replace(
        "{{ m.content }}",
        "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }} {{ c.function.arguments }}{% endfor %}",
    )
    prompts = prompts_of(smollm2, "{{ tools | tojson if tools else '' }}" + text)
    assert prompts.form == Form(text_arguments=True)
    call = Message("assistant", "", (ToolCall("c", "f", '{"a": null, "b": "it\'s"}'),))
    assert prompts.reference_text(call) == 'f {"a": null, "b": "it\'s"}'
