from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from sdft_cli.preparation.duplicates import (
    first_of_each,
    joined_groups,
    near_copies,
    record_key,
    similarity,
    sketch,
    tools_hash,
    turn_hashes,
    turn_sketch,
)
from sdft_cli.preparation.split import split_keys, validation_groups
from sdft_cli.records import Message, Session, ToolCall, ToolSchema


def session(name: str, *texts: str, group: str = "", project: str | None = None) -> Session:
    messages = tuple(Message("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(texts))
    return Session(name, messages, group=group or name, metadata={"project": project} if project else {})


def test_hashes_are_equal_for_equal_contexts_and_turns_only() -> None:
    a, b = session("a", "q", "x", "r", "y"), session("b", "q", "x", "r", "z")
    assert turn_hashes(a)[1] == turn_hashes(b)[1]
    assert turn_hashes(a)[3] != turn_hashes(b)[3]
    call = Message("assistant", "x", (ToolCall("1", "f", "{}"),))
    other_id = Message("assistant", "x", (ToolCall("2", "f", "{}"),))
    other_name = Message("assistant", "x", (ToolCall("1", "g", "{}"),))
    first, same, different = (
        turn_hashes(replace(a, messages=(a.messages[0], m)))[1] for m in (call, other_id, other_name)
    )
    assert first == same != different


@given(st.lists(st.text(max_size=3), min_size=2, max_size=6), st.lists(st.text(max_size=3), min_size=2, max_size=6))
def test_text_cannot_move_between_messages_unseen(a: list[str], b: list[str]) -> None:
    first, second = turn_hashes(session("s", *a)), turn_hashes(session("s", *b))
    for turn in set(first) & set(second):
        assert (first[turn] == second[turn]) == (a[: turn + 1] == b[: turn + 1])


def test_the_first_of_equal_records_is_kept_and_named() -> None:
    a, b = session("a", "q", "x"), session("b", "q", "x", "r", "y")
    hashes = [turn_hashes(a)[1], turn_hashes(b)[1], turn_hashes(b)[3], turn_hashes(a)[1]]
    tools = tools_hash(a)
    assert first_of_each(b"".join(record_key(tools, h) for h in hashes)).tolist() == [0, 0, 2, 0]
    other = tools_hash(replace(a, tools=(ToolSchema("f", "", "{}"),)))
    assert first_of_each(record_key(tools, hashes[0]) + record_key(other, hashes[0])).tolist() == [0, 1]
    assert first_of_each(b"").tolist() == []


@given(st.lists(st.binary(min_size=2, max_size=2), max_size=40))
def test_the_first_of_any_keys_is_found(ends: list[bytes]) -> None:
    keys = [b"\0" * 7 + end[:1] + b"\0" * 7 + end[1:] for end in ends]
    assert first_of_each(b"".join(keys)).tolist() == [keys.index(key) for key in keys]


def test_sessions_with_the_same_beginning_are_one_group() -> None:
    sessions = [
        session("c", "q", "x", "r", "y"),
        session("d", "q", "x", "s", "z"),  # a resumed copy of c
        session("e", "q", "other"),  # the same question, another answer
        session("f", "u", "v", group="d"),  # a subagent of d
        session("g", "w"),  # no turn at all
    ]
    groups = joined_groups((s.group, next(iter(turn_hashes(s).values()), None)) for s in sessions)
    assert groups == ["c", "c", "e", "c", "g"]
    backwards = sessions[::-1]
    groups = joined_groups((s.group, next(iter(turn_hashes(s).values()), None)) for s in backwards)
    assert groups == ["g", "c", "e", "c", "c"]


def test_projects_join_groups_and_groups_join_projects() -> None:
    sessions = [
        session("a", "q", group="a", project="p1"),
        session("b", "q", group="b", project="p1"),
        session("c", "q", group="c", project="p2"),
        session("d", "q", group="b", project="p2"),  # b works on both projects
        session("e", "q", group="e"),
        session("f", "q", group="f"),
    ]
    by_session = split_keys(sessions, "session")
    assert by_session == {"a": "a", "b": "b", "c": "c", "d": "b", "e": "e", "f": "f"}
    by_project = split_keys(sessions, "project")
    assert len({by_project[x] for x in "abcd"}) == 1
    assert len({by_project[x] for x in "abcdef"}) == 3


def test_held_out_groups_depend_on_their_names_only() -> None:
    names = [f"g{i}" for i in range(20)]
    held = validation_groups(names, 0.25, 0)
    assert held == validation_groups(names[::-1] * 2, 0.25, 0)
    assert len(held) == 5
    assert held != validation_groups(names, 0.25, 1)
    assert validation_groups(names, 0, 0) == validation_groups(["one"], 0.5, 0) == set()
    assert len(validation_groups(names, 0.001, 0)) == 1
    assert len(validation_groups(names[:2], 0.99, 0)) == 1


LONG = " ".join(f"word{i}" for i in range(60))


def test_similarity_is_that_of_the_sets_of_runs() -> None:
    """With at most 64 runs the sketch holds all of them, so the estimate is the Jaccard similarity itself."""
    other = LONG.replace("word59", "changed")
    runs = lambda text: {tuple(text.split()[i : i + 5]) for i in range(56)}  # noqa: E731
    exact = len(runs(LONG) & runs(other)) / len(runs(LONG) | runs(other))
    assert similarity(sketch(LONG), sketch(other)) == exact
    assert similarity(sketch(LONG), sketch(LONG)) == 1
    assert similarity(sketch(LONG), sketch("else " + " ".join(f"w{i}" for i in range(60)))) == 0
    assert sketch("too short to say") == ()


def test_near_copies_across_the_split_are_reported() -> None:
    a = session("a", LONG, "the answer")
    b = session("b", LONG.replace("word59", "changed"), "the answer")
    c = session("c", " ".join(f"else{i}" for i in range(60)), "the answer")
    sketches = {s.session_id: turn_sketch(s, 1) for s in (a, b, c)}
    train = [("c/1", sketches["c"]), ("a/1", sketches["a"])]
    (found,) = near_copies(train, [("b/1", sketches["b"])])
    assert found[:2] == ("b/1", "a/1")
    assert 0.8 <= found[2] < 1
    assert near_copies(train[:1], [("b/1", sketches["b"]), ("none", ())]) == []
    assert near_copies(train, []) == []
