from __future__ import annotations

from dataclasses import replace

from sdft_cli.preparation.coverage import Turn, Usage
from sdft_cli.preparation.duplicates import turn_hashes, turn_sketch
from sdft_cli.preparation.gathered import choose, gather
from sdft_cli.preparation.turns import SessionTurns
from sdft_cli.records import Message, RecordRow, Rejection, Session, ToolSchema

WORDS = " ".join(f"word{i}" for i in range(60))


def measured(name: str, *texts: str, group: str = "", tools: tuple[ToolSchema, ...] = ()) -> SessionTurns:
    """A session whose last turn is rejected, and whose others are records."""
    messages = tuple(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))
    session = Session(name, messages, tools, group or name)
    *turns, last = session.assistant_turns()
    outcomes: list[RecordRow | Rejection] = [RecordRow(f"{name}/{t}", name, t, 1, 2, 3, False) for t in turns]
    outcomes.append(Rejection(f"{name}/{last}", name, last, "empty_reference"))
    sketches = {turn: turn_sketch(session, turn) for turn in turns}
    usage = Usage(name, [Turn(1, 10, 9)])
    return SessionTurns(session, outcomes, turn_hashes(session), sketches, False, usage=usage)


def test_sessions_come_back_whole_in_their_joined_groups() -> None:
    given = [measured("b", "q", "x", "r", ""), measured("a", "q", "x", "s", ""), measured("c", "u", "v", "w", "")]
    found = gather(given)
    assert list(found.sessions) == [replace(t.session, group=g) for t, g in zip(given, "aac", strict=True)]
    assert found.sessions[-1] == given[-1].session
    assert [head.group for head in found.heads] == ["a", "a", "c"]
    assert list(found.usages) == [t.usage for t in given]
    assert found.turns == 6


def test_the_first_of_equal_records_is_kept_and_named() -> None:
    tool = ToolSchema("f", "", "{}")
    given = [measured("a", "q", "x", "r", ""), measured("b", "q", "x", "r", "y", "s", "")]
    given.append(measured("c", "q", "x", "r", "", tools=(tool,)))
    lost = Rejection("z", "z", None, "abandoned_branch")
    chosen = choose(gather(given), {}, [lost])
    assert [r.record_id for r in chosen.rows] == ["a/1", "b/3", "c/1"]
    assert [(r.record_id, r.reason, r.detail) for r in chosen.rejected] == [
        ("z", "abandoned_branch", ""),
        ("a/3", "empty_reference", ""),
        ("b/5", "empty_reference", ""),
        ("c/3", "empty_reference", ""),
        ("b/1", "duplicate", "the same as a/1"),
    ]
    assert chosen.rejected[-1].reference_tokens == 3


def test_a_refused_turn_leaves_its_copy_as_the_first() -> None:
    chosen = choose(gather([measured("a", "q", "x", "r", ""), measured("b", "q", "x", "s", "")]), {"a": {1: 9}}, [])
    assert [r.record_id for r in chosen.rows] == ["b/1"]
    assert next((r.record_id, r.reason) for r in chosen.rejected) == ("a/1", "context_incomplete")


def test_near_copies_are_those_of_sessions_held_out() -> None:
    given = [measured("a", WORDS, "x", "r", ""), measured("b", WORDS, "y", "r", "")]
    chosen = choose(gather(given), {}, [])
    assert [pair[:2] for pair in chosen.near_copies({"b"})] == [("b/1", "a/1")]
    assert chosen.near_copies(set()) == chosen.near_copies({"a", "b"}) == []
