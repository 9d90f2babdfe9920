"""Parallel calls taken apart: every call, every result and the text once, in the order of the calls."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from sdft_cli.preparation.parallel import split_parallel
from sdft_cli.records import Message, Session, ToolCall


def call(name: str) -> ToolCall:
    return ToolCall(name, "Read", f'{{"path": "{name}"}}')


def result(name: str) -> Message:
    return Message("tool", f"text of {name}", tool_call_id=name, name="Read")


ASK, SAY = Message("user", "Read both."), Message("assistant", "Done.")
BOTH = Message("assistant", "I read them.", (call("a"), call("b")), seen_tokens=7)


def test_two_calls_become_two_turns_each_with_its_result() -> None:
    counts = Counter[str]()
    found = split_parallel(Session("s", (ASK, BOTH, result("b"), result("a"), SAY)), counts)
    assert found.messages == (
        ASK,
        Message("assistant", "I read them.", (call("a"),), seen_tokens=7),
        result("a"),
        Message("assistant", "", (call("b"),)),
        result("b"),
        SAY,
    )
    assert counts == {"parallel_calls_split": 1}


def test_a_status_holds_for_each_part() -> None:
    stopped = Message("assistant", "", (call("a"), call("b")), status="interrupted")
    found = split_parallel(Session("s", (ASK, stopped, result("a"), result("b"))), Counter())
    assert [m.status for m in found.messages if m.role == "assistant"] == ["interrupted", "interrupted"]


def test_what_cannot_be_told_apart_stays() -> None:
    twice = Message("assistant", "", (call("a"), call("a")))
    for messages in (
        (ASK, BOTH, result("a"), SAY),  # no result of one
        (ASK, BOTH, result("a"), result("c")),  # the result of another
        (ASK, BOTH),
        (ASK, BOTH, result("a"), ASK, result("b")),
        (ASK, twice, result("a"), result("a")),
        (ASK, Message("assistant", "", (call("a"),)), result("a"), SAY),
    ):
        counts = Counter[str]()
        assert split_parallel(Session("s", messages), counts).messages == messages
        assert not counts


@given(st.lists(st.integers(0, 4), max_size=6), st.randoms())
def test_nothing_is_lost_or_added(sizes: list[int], random: object) -> None:
    messages: list[Message] = [ASK]
    for turn, size in enumerate(sizes):
        names = [f"{turn}.{number}" for number in range(size)]
        shuffled = names[:]
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        messages += [Message("assistant", f"turn {turn}", tuple(map(call, names))), *map(result, shuffled)]
    counts = Counter[str]()
    found = split_parallel(Session("s", tuple(messages)), counts).messages
    assert counts["parallel_calls_split"] == sum(size > 1 for size in sizes)
    assert [c for m in found for c in m.tool_calls] == [c for m in messages for c in m.tool_calls]
    assert [m.content for m in found if m.role == "assistant" and m.content] == [f"turn {i}" for i in range(len(sizes))]
    results = [Counter(m.content for m in each if m.role == "tool") for each in (found, messages)]
    assert results[0] == results[1]
    for before, message in pairwise(found):
        assert len(before.tool_calls) < 2
        assert message.role != "tool" or message.tool_call_id == before.tool_calls[0].id
