from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sdft_cli.config import PrepareConfig
from sdft_cli.preparation.job import Job
from sdft_cli.preparation.pipeline import manifest_of, prepare
from sdft_cli.preparation.system import kept_without, leading, system_summary, without
from sdft_cli.prompts.chat import ChatPrompts, load_tokenizer
from sdft_cli.prompts.teacher import load_teacher_template
from sdft_cli.records import Message, Rejection, Session
from sdft_cli.traces.source import resolve_source

LONG = "Be brief. " * 200


@pytest.fixture(scope="module")
def prompts(smollm2: Path) -> ChatPrompts:
    return ChatPrompts(load_tokenizer(smollm2), load_teacher_template())


def talk(*roles: str) -> Session:
    return Session("s", tuple(Message(role, role) for role in roles))  # type: ignore[arg-type]


def test_only_the_system_messages_at_the_beginning_are_dropped() -> None:
    assert [leading(talk(*roles)) for roles in ((), ("user",), ("system",), ("system", "system", "user"))] == [
        0,
        0,
        1,
        2,
    ]
    assert without(talk("system", "user", "system", "assistant")) == talk("user", "system", "assistant")
    assert without(talk("user", "system")) == talk("user", "system")


def over(session: str, reason: str, teacher: int | None, reference: int | None) -> Rejection:
    return Rejection(f"{session}/1", session, 1, reason, "", 1, teacher, reference)


def test_turns_that_fit_without_the_system_prompt_are_counted() -> None:
    caps = {"max_prompt_tokens": 100, "max_rollout_tokens": 50, "max_seq_tokens": 120}
    rejected = [
        over("a", "over_prompt_cap", 130, 20),  # 100 and 120: fits
        over("a", "over_prompt_cap", 131, 5),  # 101
        over("a", "over_sequence_cap", 100, 50),  # 70 and 120: fits
        over("a", "over_sequence_cap", 101, 50),  # 71 and 121
        over("a", "over_rollout_cap", 90, 51),  # the answer itself is too long
        over("b", "over_prompt_cap", 101, 5),  # a session without a system prompt
        over("a", "empty_reference", None, None),
        over("a", "context_incomplete", 50, 5),  # not for its length
    ]
    assert kept_without(rejected, {"a": 30}, caps) == 2
    assert kept_without(rejected, {"a": -30}, caps) == 0  # the template's own default is longer
    assert system_summary({}, rejected, caps, dropped=False) is None
    assert system_summary({"a": 30, "b": 10, "c": 20}, rejected, caps, dropped=True) == {
        "sessions": 3,
        "median_tokens": 20,
        "dropped": True,
        "more_without": 0,
    }


def test_with_and_without_the_system_prompt(write_jsonl: Callable[..., Path], prompts: ChatPrompts) -> None:
    """The tokens counted are those that each prompt shrinks by, so the records foreseen are those that are kept."""
    turns = [{"role": role, "content": role * 3} for role in ("user", "assistant", "user", "assistant")]
    rows = [{"messages": [{"role": "system", "content": LONG}, *turns]}, {"messages": [{**m} for m in turns[:2]]}]
    path = write_jsonl("m.jsonl", rows)

    def run(**changes: object) -> tuple[list[tuple[int, int]], dict[str, object] | None]:
        given = {"source": str(path), "model": "smollm2-135m", "redact": False, "validation_fraction": 0, **changes}
        config = PrepareConfig.model_validate(given)
        source = resolve_source(str(path))
        found = prepare(source, Job(config, prompts, None))
        # A record's first turn is at 1, or at 2 behind a system message.
        rows = [(r.turn_index, r.prompt_tokens) for r in found.rows if not r.session_id.endswith(":2")]
        return rows, manifest_of(config, source, prompts, found)["system_prompt"]

    kept, facts = run()
    dropped, facts_without = run(system_prompt="none")
    saved = {before - after for (_, before), (_, after) in zip(kept, dropped, strict=True)}
    assert [turn for turn, _ in kept] == [2, 4]
    assert [turn for turn, _ in dropped] == [1, 3]
    assert len(saved) == 1
    (tokens,) = saved
    assert 300 < tokens < 700
    assert facts == {"sessions": 1, "median_tokens": tokens, "dropped": False, "more_without": 0}
    assert facts_without == {"sessions": 1, "median_tokens": tokens, "dropped": True, "more_without": 0}
    _, facts = run(max_prompt_tokens=300)
    assert facts == {"sessions": 1, "median_tokens": tokens, "dropped": False, "more_without": 2}
    assert run(max_prompt_tokens=300, system_prompt="none")[0] == dropped
