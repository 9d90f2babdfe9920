"""Sums over blocks are the full rendering, for every turn, with templates that change the past too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdft_cli.config import PrepareConfig
from sdft_cli.preparation.reasoning import strip_session
from sdft_cli.preparation.turns import turns_of
from sdft_cli.prompts.chat import ChatPrompts
from sdft_cli.prompts.incremental import SessionCounter, TokenCounter, ids_in_full
from sdft_cli.prompts.template import ChatTemplate, TemplateError
from sdft_cli.records import Message, Session, ToolCall, ToolSchema
from sdft_cli.traces.source import read_source, resolve_source
from tests.datasets import with_tools

TOOLS = (ToolSchema("Run", "Run it.", '{"type": "object", "properties": {"x": {"type": "string"}}}'),)


def countable(session: Session) -> list[int]:
    first_user = next((i for i, m in enumerate(session.messages) if m.role == "user"), len(session.messages))
    return [turn for turn in session.assistant_turns() if turn > first_user]


def check(counter: TokenCounter, session: Session) -> SessionCounter:
    counted = counter.session(session)
    for turn in countable(session):
        assert counted.lengths(turn) == ids_in_full(counter.prompts, session, turn).lengths, turn
        assert counted.holds_at(turn)
    return counted


@pytest.fixture(scope="module")
def counter(prompts: ChatPrompts) -> TokenCounter:
    found = TokenCounter(prompts)
    assert found.local
    return found


TEXT = st.sampled_from(["", " ", "x", "\n a\n", "<tool_response>", "<|im_end|>", "word " * 9, "</think>"])
CALL = st.builds(lambda x: ToolCall("c", "Run", f'{{"x": "{x}"}}'), st.sampled_from(["", "ls", "a\\n b"]))
MESSAGES = st.lists(
    st.one_of(
        st.builds(Message, st.just("user"), TEXT),
        st.builds(Message, st.just("assistant"), TEXT, st.lists(CALL, max_size=2).map(tuple)),
        st.builds(lambda t: Message("tool", t, tool_call_id="c", name="Run"), TEXT),
    ),
    max_size=14,
)


@settings(max_examples=60, deadline=None)
@given(MESSAGES, st.booleans(), st.booleans())
def test_any_conversation_is_the_sum_of_its_blocks(
    counter: TokenCounter, messages: list[Message], system: bool, tools: bool
) -> None:
    start = [Message("system", "Be brief.")] if system else []
    counted = check(counter, Session("s", (*start, *messages), TOOLS if tools else ()))
    assert not counted.in_full


@pytest.mark.parametrize("template", ["smollm2", "qwen3_5_nothink"])
def test_real_sessions_are_counted_exactly(
    make_prompts: Callable[[str], ChatPrompts], template: str, shared_sessions: Path
) -> None:
    """All shared sessions, at their first, middle and last turns; benchmarks/bench_prepare.py compares every turn."""
    counter = TokenCounter(make_prompts(template))
    compared = 0
    for session in with_tools(read_source(resolve_source(str(shared_sessions))).sessions):
        session, _ = strip_session(session, Counter())
        counted, turns = counter.session(session), countable(session)
        chosen = {turns[0], turns[len(turns) // 2], turns[-1]} if turns else set()
        for turn in turns:
            lengths = counted.lengths(turn)
            if turn in chosen:
                compared += 1
                assert lengths == ids_in_full(counter.prompts, session, turn).lengths
                assert counted.holds_at(turn)
        assert not counted.in_full
        counter.prompts.encoder.forget()
    assert compared >= 40


ONE = "{%- for m in messages -%}<|im_start|>{{ m.role }}\\n{{ m.content }}"
END = "<|im_end|>\\n{%- endfor -%}{%- if add_generation_prompt -%}<|im_start|>assistant\\n{%- endif -%}"


def with_template(prompts: ChatPrompts, text: str) -> ChatPrompts:
    return ChatPrompts(prompts.tokenizer, prompts.teacher, ChatTemplate(prompts.tokenizer, text))


@pytest.mark.parametrize(
    ("template", "refused"),
    [
        (ONE + "{{ loop.index }}" + END, False),  # the position of a message changes its text
        (ONE + "{{ messages | length }}" + END, True),  # their number changes every text: no reference can be cut out
        (ONE + "{{ 'A' if loop.last and m.role == 'assistant' }}" + END, False),  # the last answer looks different
        ((ONE + END).replace("<|im_start|>", "##"), False),  # blocks do not begin at a token boundary
    ],
)
def test_a_template_that_is_not_local_is_found_out_and_counted_in_full(
    make_prompts: Callable[[str], ChatPrompts], template: str, refused: bool
) -> None:
    counter = TokenCounter(with_template(make_prompts("smollm2"), template.replace("\\n", "\n")))
    assert not counter.local
    session = Session("s", tuple(Message("user" if i % 2 == 0 else "assistant", f"m{i}") for i in range(6)))
    if refused:
        with pytest.raises(TemplateError, match="differently from its generation prompt"):
            counter.session(session).lengths(1)
    else:
        assert check(counter, session).in_full


def test_qwen3_is_not_local_and_is_counted_in_full(make_prompts: Callable[[str], ChatPrompts]) -> None:
    """It writes a think block into an answer that is the last message, so a block depends on what follows it."""
    counter = TokenCounter(make_prompts("qwen3"))
    assert not counter.local
    messages = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))
    assert check(counter, Session("s", messages)).in_full


def test_a_session_that_the_probes_did_not_foresee_is_caught_at_its_last_turn(
    make_prompts: Callable[[str], ChatPrompts],
) -> None:
    """A template may behave for the probes and not for a session: here, from the 40th message on."""
    prompts = make_prompts("smollm2")
    tail = "{%- if messages | length > 40 -%}<|im_start|>too long{%- endif -%}"
    counter = TokenCounter(with_template(prompts, prompts.template.text + tail))
    assert counter.local
    messages = tuple(Message("user" if i % 2 == 0 else "assistant", f"m{i}") for i in range(60))
    session = Session("s", messages)
    counted = counter.session(session)
    for turn in countable(session):
        counted.lengths(turn)
    assert not counted.holds_at(countable(session)[-1])


def test_turns_that_were_summed_before_one_that_could_not_be_are_not_trusted(
    make_prompts: Callable[[str], ChatPrompts],
) -> None:
    """The block of one turn does not begin at a token boundary; the turns before it were summed all the same."""
    prompts = make_prompts("smollm2")
    start = "'<|im_start|>' + message['role']"
    assert start in prompts.template.text
    odd = start.replace("'<|im_start|>'", "('##' if message['content'] == 'odd' else '<|im_start|>')")
    counter = TokenCounter(with_template(prompts, prompts.template.text.replace(start, odd)))
    assert counter.local
    texts = ("q", "a", "r", "b", "s", "odd", "t", "c")
    session = Session("s", tuple(Message("user" if i % 2 == 0 else "assistant", t) for i, t in enumerate(texts)))
    counted = counter.session(session)
    counted.lengths(1)
    assert counted.holds_at(1)
    counted.lengths(7)
    assert counted.in_full
    assert not counted.holds_at(7)
    assert turns_of(session, counter, PrepareConfig(source="x", redact=False), None).in_full


def test_what_the_template_refuses_is_refused(make_prompts: Callable[[str], ChatPrompts]) -> None:
    prompts = make_prompts("qwen3_5_nothink")
    messages = (Message("user", "a"), Message("assistant", "b"), Message("system", "late"), Message("user", "c"))
    session = Session("s", (*messages, Message("assistant", "d")))
    counted = TokenCounter(prompts).session(session)
    assert counted.lengths(1).student > 0
    with pytest.raises(TemplateError, match="System message must be at the beginning"):
        counted.lengths(4)
