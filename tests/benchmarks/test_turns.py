from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from benchmarks.turns import largest, read_turns, real_turns, shortened, student_tokens, write_turns
from sdft_cli.prompts.chat import ChatPrompts, load_tokenizer, open_prompts
from sdft_cli.prompts.teacher import load_teacher_template
from sdft_cli.records import Message, Session, ToolCall, read_dataset


def test_texts_and_arguments_are_cut_and_nothing_else() -> None:
    call = ToolCall("1", "Read", '{"path": "abcdef", "lines": [1, "uvwxyz"], "deep": {"k": "12345"}}')
    session = Session("s", (Message("user", "question"), Message("assistant", "answer", (call,))))
    short = shortened(session, 3)
    assert [m.content for m in short.messages] == ["que", "ans"]
    assert short.messages[1].tool_calls[0].parsed_arguments() == {
        "path": "abc",
        "lines": [1, "uvw"],
        "deep": {"k": "123"},
    }
    assert shortened(session, 100).messages[0] == session.messages[0]


@pytest.mark.parametrize("limit", [3, 7, 11, 12, 50])
def test_the_largest_number_that_fits(limit: int) -> None:
    assert largest(lambda n: n <= limit, 3, 12) == min(limit, 12)


def test_examples_give_consecutive_turns_within_the_cap(tiny_model: Path, tmp_path: Path) -> None:
    data = read_dataset(write_turns(tmp_path, str(tiny_model), None, 3, 400)[0])
    records, hello = read_turns(data, 3)
    every = records[0].session.assistant_turns()
    first = every.index(records[0].row.turn_index)
    assert [r.row.turn_index for r in records] == every[first : first + 3]
    prompts = open_prompts(str(tiny_model), data.manifest)
    assert records[-1].row.prompt_tokens == student_tokens(prompts, records[-1].session, every[first + 2]) <= 400
    assert student_tokens(prompts, records[-1].session, every[first + 3]) > 400
    assert hello.row.prompt_tokens < records[0].row.prompt_tokens
    assert [r.record_id for r in read_turns(data, 1)[0]] == [records[-1].record_id]


def test_a_long_session_is_cut_until_its_turns_fit(tiny_model: Path) -> None:
    prompts = ChatPrompts(load_tokenizer(tiny_model), load_teacher_template())
    text = "one two three four five " * 200
    pairs = [(Message("user", text), Message("assistant", text)) for _ in range(6)]
    session = Session("s", tuple(m for pair in pairs for m in pair))
    every = {"s": session.assistant_turns()}
    short, turns, characters = real_turns(prompts, every, [session], 2, 300)
    assert turns == [5, 7]  # the third and the fourth of six
    assert short == shortened(session, characters)
    assert student_tokens(prompts, short, 7) <= 300 < student_tokens(prompts, shortened(session, characters + 1), 7)
    # A tighter cap takes turns with half as many before them.
    assert real_turns(prompts, every, [session], 2, 80)[1] == [3, 5]
    with pytest.raises(SystemExit, match="change --turns"):
        real_turns(prompts, every, [session], 7, 300)


def test_a_session_that_fits_stays_as_it_is(tiny_model: Path) -> None:
    prompts = ChatPrompts(load_tokenizer(tiny_model), load_teacher_template())
    session = Session("s", (Message("user", "one two"), Message("assistant", "three")))
    assert real_turns(prompts, {"s": [1]}, [session], 1, 300) == (session, [1], 7)
