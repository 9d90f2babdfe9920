"""Sessions that several files of a source share: resumed, branched, and subagents in their own files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdft_cli.traces.source import read_source, resolve_source
from sdft_cli.traces.types import FileSessions
from tests.traces.lines import call, line, result, text

Write = Callable[..., Path]

ORIGINAL = [
    line("u1", None, "user", "one"),
    line("u2", "u1", "assistant", text("two"), mid="m1"),
    line("u3", "u2", "user", "three"),
    line("u4", "u3", "assistant", text("four"), mid="m2"),
]


def of_session(name: str, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**x, "sessionId": name} for x in lines]


def read(folder: Path) -> FileSessions:
    return read_source(resolve_source(str(folder)))


def turns(found: FileSessions) -> dict[str, list[str]]:
    return {s.session_id: [s.messages[i].content for i in s.assistant_turns()] for s in found.sessions}


def test_a_resumed_session_counts_its_own_turns_only_and_is_in_one_group(write_jsonl: Write, tmp_path: Path) -> None:
    more = [line("v1", "u4", "user", "five"), line("v2", "v1", "assistant", text("six"), mid="m3")]
    write_jsonl("all/a.jsonl", ORIGINAL)
    write_jsonl("all/b.jsonl", of_session("t", [*ORIGINAL, *more]))
    found = read(tmp_path / "all")
    assert turns(found) == {"s": ["two", "four"], "t": ["six"]}
    assert {s.group for s in found.sessions} == {"s"}
    assert [m.content for m in found.sessions[1].messages] == ["one", "two", "three", "four", "five", "six"]
    assert found.report.lines == {"conversation": 6, "duplicate": 4}


def test_the_order_of_the_files_does_not_matter(write_jsonl: Write, tmp_path: Path) -> None:
    more = [line("v1", "u2", "user", "five"), line("v2", "v1", "assistant", text("six"), mid="m3")]
    write_jsonl("all/a.jsonl", of_session("t", [*ORIGINAL[:2], *more]))
    write_jsonl("all/b.jsonl", ORIGINAL)
    found = read(tmp_path / "all")
    assert turns(found) == {"t": ["two", "six"], "s": ["four"]}
    assert {s.group for s in found.sessions} == {"t"}


def test_a_whole_copy_gives_no_session(write_jsonl: Write, tmp_path: Path) -> None:
    write_jsonl("all/a.jsonl", ORIGINAL)
    write_jsonl("all/b.jsonl", ORIGINAL)
    found = read(tmp_path / "all")
    assert turns(found) == {"s": ["two", "four"]}
    assert found.report.lines == {"conversation": 4, "duplicate": 4}


def test_a_branched_session_names_the_lines_that_it_copied(write_jsonl: Write, tmp_path: Path) -> None:
    """`/branch` may give its copies new ids; `forkedFrom` has the old ones."""

    def renamed(value: str | None) -> str | None:
        return value and "n" + value

    copied = [
        {
            **x,
            "uuid": renamed(x["uuid"]),
            "parentUuid": renamed(x["parentUuid"]),
            "forkedFrom": {"sessionId": "s", "messageUuid": x["uuid"]},
        }
        for x in ORIGINAL
    ]
    more = [line("v1", "nu4", "user", "five"), line("v2", "v1", "assistant", text("six"), mid="m3")]
    write_jsonl("all/a.jsonl", ORIGINAL)
    write_jsonl("all/b.jsonl", of_session("t", [*copied, *more]))
    found = read(tmp_path / "all")
    assert turns(found) == {"s": ["two", "four"], "t": ["six"]}
    assert {s.group for s in found.sessions} == {"s"}


def test_a_third_file_joins_the_groups_of_two(write_jsonl: Write, tmp_path: Path) -> None:
    other = [line("w1", None, "user", "else"), line("w2", "w1", "assistant", text("yes"), mid="m9")]
    last = line("x", "w2", "user", "end")
    write_jsonl("all/a.jsonl", ORIGINAL)
    write_jsonl("all/b.jsonl", of_session("t", other))
    write_jsonl("all/c.jsonl", of_session("v", [*ORIGINAL, *other, last]))
    assert {s.session_id: s.group for s in read(tmp_path / "all").sessions} == {"s": "s", "t": "s"}


def test_equal_ids_with_other_words_are_strangers(write_jsonl: Write, tmp_path: Path) -> None:
    write_jsonl("all/a.jsonl", ORIGINAL)
    strangers = [line("u1", None, "user", "other"), line("u2", "u1", "assistant", text("else"), mid="m1")]
    write_jsonl("all/b.jsonl", of_session("t", strangers))
    found = read(tmp_path / "all")
    assert turns(found) == {"s": ["two", "four"], "t": ["else"]}
    assert {s.group for s in found.sessions} == {"s", "t"}


def test_a_subagent_in_its_own_file_is_a_session_of_its_parents_group(write_jsonl: Write, tmp_path: Path) -> None:
    side = {"isSidechain": True, "agentId": "x1"}
    agent = [line("p1", None, "user", "task", **side), line("p2", "p1", "assistant", text("done"), mid="m7", **side)]
    write_jsonl("all/s/subagents/agent-x1.jsonl", agent)
    write_jsonl("all/s.jsonl", ORIGINAL)
    found = read(tmp_path / "all")
    assert turns(found) == {"s": ["two", "four"], "s/agent-x1": ["done"]}
    assert {s.group for s in found.sessions} == {"s"}


def test_a_subagent_that_inherits_the_conversation_does_not_take_its_turns(write_jsonl: Write, tmp_path: Path) -> None:
    side = {"isSidechain": True, "agentId": "x1"}
    agent = [
        *({**x, **side} for x in ORIGINAL),
        line("p1", "u4", "user", "task", **side),
        line("p2", "p1", "assistant", text("done"), mid="m7", **side),
    ]
    write_jsonl("all/agent-x1.jsonl", agent)
    write_jsonl("all/s.jsonl", ORIGINAL)
    found = read(tmp_path / "all")
    assert turns(found) == {"s": ["two", "four"], "s/agent-x1": ["done"]}
    assert [m.content for m in found.sessions[1].messages] == ["one", "two", "three", "four", "task", "done"]


STUBBED = [
    line("u1", None, "user", "one"),
    line("u2", "u1", "assistant", call("c"), mid="m1"),
    line("u3", "u2", "user", result("c", "FULL " * 5)),
    {
        "type": "content-replacement",
        "sessionId": "s",
        "replacements": [{"kind": "tool-result", "toolUseId": "c", "replacement": "<persisted-output>stub"}],
    },
    line("u4", "u3", "assistant", text("four"), mid="m2"),
]


def test_a_large_result_is_a_stub_in_a_context_that_another_file_goes_on_from(
    write_jsonl: Write, tmp_path: Path
) -> None:
    more = [line("v1", "u4", "user", "five"), line("v2", "v1", "assistant", text("six"), mid="m3")]
    fork = {"type": "fork-context-ref", "agentId": "g", "parentLastUuid": "u4", "sessionId": "s"}
    agent = {"isSidechain": True, "agentId": "g"}
    asked = [line("w1", None, "user", "do it", **agent), line("w2", "w1", "assistant", text("did"), mid="m4", **agent)]
    write_jsonl("all/a.jsonl", STUBBED)
    write_jsonl("all/b.jsonl", of_session("t", more))
    write_jsonl("all/s/subagents/agent-g.jsonl", [fork, *asked])
    found = read(tmp_path / "all")
    shown = {s.session_id: [m.content for m in s.messages if m.role == "tool"] for s in found.sessions}
    assert shown == {name: ["<persisted-output>stub"] for name in ("s", "t", "s/agent-g")}
