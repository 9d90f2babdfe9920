"""Which place is live after a compaction, which lines are the same message, and whose turns count."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdft_cli.traces.claude_code.reader import read_claude_code
from sdft_cli.traces.source import read_source, resolve_source
from sdft_cli.traces.types import FileSessions
from tests.traces.lines import call, line, result, text

Write = Callable[..., Path]


def contexts(found: FileSessions) -> dict[str, list[str]]:
    """What each context says; turns that count elsewhere are in brackets."""
    return {
        s.session_id: [f"({m.content})" if m.status == "repeated" else m.content for m in s.messages]
        for s in found.sessions
    }


def answer(uuid: str, parent: str | None, words: str, **extra: Any) -> dict[str, Any]:
    return line(uuid, parent, "assistant", text(words), mid=f"m{words}", **extra)


def boundary(uuid: str, leaf: str | None, **metadata: Any) -> dict[str, Any]:
    made = line(uuid, None, "system", subtype="compact_boundary", content="Conversation compacted")
    return {**made, "logicalParentUuid": leaf, "compactMetadata": metadata}


def summary(uuid: str, parent: str, words: str = "summary") -> dict[str, Any]:
    return line(uuid, parent, "user", words, isCompactSummary=True)


OLD = [line("1", None, "user", "one"), answer("2", "1", "two")]
HOOK = line("h", "2", "system", subtype="stop_hook_summary")


@pytest.mark.parametrize(
    ("old", "leaf"), [(OLD, "2"), ([*OLD, HOOK], "h"), ([*OLD, HOOK], "2"), (OLD, None), ([*OLD, HOOK], "gone")]
)
def test_talk_that_goes_on_from_the_old_leaf_saw_the_summary(write_jsonl: Write, old: list[Any], leaf: str) -> None:
    parent = old[-1]["uuid"]
    lines = [
        *old,
        boundary("b", leaf),
        summary("s", "b"),
        line("3", parent, "user", "/compact", isMeta=True),
        line("4", "3", "user", "three"),
        answer("5", "4", "four"),
    ]
    found = read_claude_code(write_jsonl("s.jsonl", lines))
    assert contexts(found) == {"s": ["one", "two"], "s#2": ["summary\n/compact\nthree", "four"]}
    assert found.report.lost_turns == []


@pytest.mark.parametrize("parent", ["2", "b", "t"])
def test_a_compaction_that_failed_is_followed_by_one_that_did_not(write_jsonl: Write, parent: str) -> None:
    lines = [*OLD, boundary("b", "2"), boundary("c", "2"), summary("t", "c")]
    lines += [line("3", parent, "user", "three"), answer("4", "3", "four")]
    found = read_claude_code(write_jsonl("s.jsonl", lines))
    assert contexts(found) == {"s": ["one", "two"], "s#2": ["summary\nthree", "four"]}


def test_talk_that_goes_on_behind_the_summary_is_left_as_it_is(write_jsonl: Write) -> None:
    lines = [*OLD, boundary("b", "2"), summary("s", "b"), line("3", "s", "user", "three"), answer("4", "3", "four")]
    found = read_claude_code(write_jsonl("s.jsonl", lines))
    assert contexts(found) == {"s": ["one", "two"], "s#2": ["summary\nthree", "four"]}


def test_a_second_compaction_that_names_the_leaf_of_the_first_closes_the_live_context(write_jsonl: Write) -> None:
    lines = [
        *OLD,
        boundary("b", "2"),
        summary("s", "b"),
        line("3", "2", "user", "three"),
        answer("4", "3", "four"),
        boundary("c", "2"),
        summary("t", "c", "second"),
        line("5", "2", "user", "five"),
        answer("6", "5", "six"),
    ]
    found = read_claude_code(write_jsonl("s.jsonl", lines))
    assert contexts(found) == {"s": ["one", "two"], "s#2": ["summary\nthree", "four"], "s#3": ["second\nfive", "six"]}


def test_what_was_kept_stands_once_although_talk_goes_on_from_the_old_place(write_jsonl: Write) -> None:
    kept = {"headUuid": "2", "anchorUuid": "s", "tailUuid": "2"}
    lines = [
        *OLD,
        boundary("b", "2", preservedSegment=kept),
        summary("s", "b"),
        line("3", "2", "user", "three"),
        answer("4", "3", "four"),
    ]
    found = read_claude_code(write_jsonl("s.jsonl", lines))
    assert contexts(found) == {"s": ["one", "two"], "s#2": ["summary", "(two)", "three", "four"]}


@pytest.mark.parametrize("same_uuid", [True, False])
def test_a_kept_tail_that_is_written_again_stands_once(write_jsonl: Write, same_uuid: bool) -> None:
    again = answer("2" if same_uuid else "2b", "s", "two", requestId="r")
    lines = [
        OLD[0],
        answer("2", "1", "two", requestId="r"),
        boundary("b", "2", preservedSegment={"headUuid": "2", "anchorUuid": "s", "tailUuid": "2"}),
        summary("s", "b"),
        again,
        line("3", again["uuid"], "user", "three"),
        answer("4", "3", "four"),
    ]
    found = read_claude_code(write_jsonl("s.jsonl", lines))
    assert contexts(found) == {"s": ["one", "two"], "s#2": ["summary", "(two)", "three", "four"]}
    assert sum(found.report.lines.values()) == len(lines)


def test_a_rewind_to_before_a_compaction_goes_on_in_the_old_context(write_jsonl: Write) -> None:
    lines = [
        *OLD,
        line("3", "2", "user", "three"),
        answer("4", "3", "four"),
        boundary("b", "4"),
        summary("s", "b"),
        line("5", "s", "user", "five"),
        answer("6", "5", "six"),
        line("7", "2", "user", "otherwise"),
        answer("8", "7", "eight"),
    ]
    found = read_claude_code(write_jsonl("s.jsonl", lines))
    assert contexts(found) == {
        "s": ["one", "two", "three", "four"],
        "s#2": ["one", "(two)", "otherwise", "eight"],
        "s#3": ["summary\nfive", "six"],
    }
    assert found.report.lost_turns == []


def test_a_branch_that_was_given_up_before_a_compaction_is_abandoned(write_jsonl: Write) -> None:
    lines = [
        *OLD,
        line("3", "2", "user", "three"),
        answer("4", "3", "four"),
        line("5", "2", "user", "five"),
        answer("6", "5", "six"),
        boundary("b", "6"),
        summary("s", "b"),
        answer("7", "s", "seven"),
    ]
    found = read_claude_code(write_jsonl("s.jsonl", lines))
    assert contexts(found) == {"s": ["one", "two", "five", "six"], "s#2": ["summary", "seven"]}
    assert [r.reason for r in found.report.lost_turns] == ["abandoned_branch"]


@pytest.mark.parametrize("every_branch", [False, True])
def test_branches_that_were_given_up_are_contexts_if_they_are_wanted(write_jsonl: Write, every_branch: bool) -> None:
    lines = [
        *OLD,
        line("3", "2", "user", "three"),
        answer("4", "3", "four"),
        line("5", "4", "user", "five"),
        answer("6", "5", "six"),
        line("7", "4", "user", "seven"),
        answer("8", "7", "eight"),
        line("9", "2", "user", "nine"),
        answer("10", "9", "ten"),
    ]
    source = resolve_source(str(write_jsonl("s.jsonl", lines)))
    found = read_source(source, every_branch=every_branch)
    last = ["one", "two", "nine", "ten"]
    if every_branch:
        assert contexts(found) == {
            "s": ["one", "two", "three", "four", "five", "six"],
            "s#2": ["one", "(two)", "three", "(four)", "seven", "eight"],
            "s#3": ["one", "(two)", "nine", "ten"],
        }
        assert found.report.lost_turns == []
    else:
        assert contexts(found) == {"s": last}
        assert [r.reason for r in found.report.lost_turns] == ["abandoned_branch"] * 3
    assert {s.group for s in found.sessions} == {"s"}


# The same id is not always the same message.


def saved(parent: str | None) -> dict[str, Any]:
    return line("h", parent, "saved_hook_context") | {"content": ["Be kind."]}


def test_a_line_that_comes_again_with_another_parent_is_another_place(write_jsonl: Write) -> None:
    lines = [
        saved(None),
        line("1", "h", "user", "one"),
        answer("2", "1", "two"),
        saved("2"),
        line("3", "h", "user", "three"),
        answer("4", "3", "four"),
        saved("4"),
        saved("4"),
        line("5", "h", "user", "five"),
        answer("6", "5", "six"),
    ]
    found = read_claude_code(write_jsonl("s.jsonl", lines))
    assert contexts(found) == {"s": ["Be kind.\none", "two", "three", "four", "five", "six"]}
    assert sum(found.report.lines.values()) == len(lines)


@pytest.mark.parametrize("requests", [["r1", "r2", "r3"], [None, None, None], ["r1", "r1", "r1"]])
def test_one_message_id_for_several_answers(write_jsonl: Write, requests: list[str | None]) -> None:
    lines: list[Any] = []
    for number, request in enumerate(requests):
        lines.append(line(f"u{number}", lines[-1]["uuid"] if lines else None, "user", f"<{number}>"))
        extra = {"requestId": request} if request else {}
        lines.append(line(f"a{number}", f"u{number}", "assistant", text(f"[{number}]"), mid="msg", **extra))
    found = read_claude_code(write_jsonl("s.jsonl", lines))
    if requests[0] == requests[1] == "r1":  # one request has one answer, whatever stands between its lines
        assert len(found.sessions[0].assistant_turns()) == 1
    else:
        assert contexts(found) == {"s": ["<0>", "[0]", "<1>", "[1]", "<2>", "[2]"]}


def test_history_that_is_written_again_with_new_ids_counts_once(write_jsonl: Write) -> None:
    first = [line("1", None, "user", "one"), answer("2", "1", "two", requestId="r1")]
    again = [line("x1", None, "user", "one"), answer("x2", "x1", "two", requestId="r1")]
    lines = [*first, *again, line("3", "x2", "user", "three"), answer("4", "3", "four", requestId="r2")]
    found = read_claude_code(write_jsonl("s.jsonl", lines))
    assert contexts(found) == {"s": ["one", "two"], "s#2": ["one", "(two)", "three", "four"]}


def test_history_that_another_file_replays_with_new_ids_counts_once(write_jsonl: Write, tmp_path: Path) -> None:
    write_jsonl("all/a.jsonl", [line("1", None, "user", "one"), answer("2", "1", "two", requestId="r1")])
    again = [line("x1", None, "user", "one"), answer("x2", "x1", "two", requestId="r1")]
    more = [line("3", "x2", "user", "three"), answer("4", "3", "four", requestId="r2")]
    write_jsonl("all/b.jsonl", [{**x, "sessionId": "t"} for x in [*again, *more]])
    found = read_source(resolve_source(str(tmp_path / "all")))
    assert contexts(found) == {"s": ["one", "two"], "t": ["one", "(two)", "three", "four"]}
    assert {s.group for s in found.sessions} == {"s"}


# The queue.


def queue(operation: str, **extra: str) -> dict[str, str]:
    return {"type": "queue-operation", "operation": operation, "sessionId": "s", **extra}


def test_a_notice_that_came_as_a_user_line_no_longer_waits(write_jsonl: Write) -> None:
    lines = [
        line("1", None, "user", "one"),
        line("2", "1", "assistant", call("c"), mid="m1"),
        queue("enqueue", content="notice"),
        queue("enqueue", content="and this"),
        line("3", "2", "user", result("c", "ok")),
        line("4", "3", "user", "notice"),
        answer("5", "4", "five"),
        queue("remove"),
        answer("6", "5", "six"),
    ]
    found = read_claude_code(write_jsonl("s.jsonl", lines))
    assert contexts(found)["s"] == ["one", "", "ok", "notice", "five", "and this", "six"]


def test_a_dequeue_that_follows_its_user_line_takes_no_other_prompt(write_jsonl: Write) -> None:
    lines = [
        queue("enqueue", content="one"),
        line("1", None, "user", "one"),
        queue("dequeue"),
        queue("enqueue", content="more"),
        answer("2", "1", "two"),
        queue("remove"),
        answer("3", "2", "three"),
    ]
    found = read_claude_code(write_jsonl("s.jsonl", lines))
    assert contexts(found)["s"] == ["one", "two", "more", "three"]


@pytest.mark.parametrize("is_summary", [False, True])
def test_a_notice_for_the_transcript_only_was_never_sent(write_jsonl: Write, is_summary: bool) -> None:
    extra = {"queueTranscriptOnly": True, **({"isCompactSummary": True} if is_summary else {})}
    lines = [*OLD, line("3", "2", "user", "stopped", **extra), line("4", "3", "user", "four"), answer("5", "4", "five")]
    found = read_claude_code(write_jsonl("s.jsonl", lines))
    if is_summary:
        assert contexts(found) == {"s": ["one", "two"], "s#2": ["stopped\nfour", "five"]}
    else:
        assert contexts(found) == {"s": ["one", "two", "four", "five"]}
        assert found.report.lines["transcript_only"] == 1


# A beginning that is missing.


@pytest.mark.parametrize(
    ("lines", "cut"),
    [
        ([line("1", "gone", "user", "one"), answer("2", "1", "two")], True),
        ([line("0", "gone", "progress"), line("1", "0", "user", "one"), answer("2", "1", "two")], True),
        ([b'{"uuid": "0", "bro', line("1", "0", "user", "one"), answer("2", "1", "two")], True),
        ([line("0", "gone", "user", "left", isMeta=True), line("1", None, "user", "1"), answer("2", "1", "2")], False),
        ([*OLD, line("3", "gone", "user", "three"), answer("4", "3", "four")], False),
        ([boundary("b", "gone"), summary("s", "b"), answer("2", "s", "two")], False),
    ],
)
def test_a_context_whose_root_names_a_parent_that_is_nowhere_is_cut(
    write_jsonl: Write, lines: list[Any], cut: bool
) -> None:
    found = read_claude_code(write_jsonl("s.jsonl", lines))
    statuses = {m.status for s in found.sessions for m in s.messages if m.role == "assistant"}
    assert statuses == {"cut_context" if cut else None}


def test_what_follows_a_compaction_of_a_cut_context_is_whole(write_jsonl: Write) -> None:
    lines = [line("1", "gone", "user", "one"), answer("2", "1", "two"), boundary("b", "2"), summary("s", "b")]
    found = read_claude_code(write_jsonl("s.jsonl", [*lines, answer("3", "s", "three")]))
    assert [[m.status for m in s.messages if m.role == "assistant"] for s in found.sessions] == [
        ["cut_context"],
        [None],
    ]


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_parent_in_another_file_is_found_there(write_jsonl: Write, tmp_path: Path, order: str) -> None:
    write_jsonl(f"all/{order[0]}.jsonl", [*OLD, line("9", "2", "user", "not seen")])
    more = [line("3", "2", "user", "three"), answer("4", "3", "four")]
    write_jsonl(f"all/{order[1]}.jsonl", [{**x, "sessionId": "t"} for x in more])
    found = read_source(resolve_source(str(tmp_path / "all")))
    assert contexts(found) == {"s": ["one", "two", "not seen"], "t": ["one", "(two)", "three", "four"]}
    assert len({s.group for s in found.sessions}) == 1
    assert found.report.lines["conversation"] == 3 + 2


@pytest.mark.parametrize("names_parent", [True, False])
def test_a_fork_goes_on_from_its_parents_talk(write_jsonl: Write, tmp_path: Path, names_parent: bool) -> None:
    side = {"isSidechain": True, "agentId": "p1"}
    reference = {"type": "fork-context-ref", "agentId": "p1", "parentSessionId": "s", "parentLastUuid": "3"}
    parent = [
        line("1", None, "user", "one"),
        line("2", "1", "assistant", call("c"), mid="m1", requestId="r1"),
        line("3", "2", "user", result("c", "ok")),
        line("4", "3", "assistant", call("f", "Agent"), mid="m2", requestId="r2"),
        line("5", "4", "user", result("f", "done")),
    ]
    fork = [
        reference,
        line("x4", "3" if names_parent else None, "assistant", call("f", "Agent"), mid="m2", requestId="r2", **side),
        line("x5", "x4", "user", [*result("f", "Fork started"), *text("Your directive")], **side),
        answer("x6", "x5", "three", requestId="r3", **side),
    ]
    write_jsonl("all/s.jsonl", parent)
    write_jsonl("all/s/subagents/agent-p1.jsonl", fork)
    found = read_source(resolve_source(str(tmp_path / "all")))
    assert contexts(found)["s/agent-p1"] == ["one", "()", "ok", "()", "Fork started", "Your directive", "three"]
    assert {s.session_id: len(s.assistant_turns()) for s in found.sessions} == {"s": 2, "s/agent-p1": 1}


# Agents that Claude Code asks for itself.


@pytest.mark.parametrize(
    ("agent", "asked", "counts"),
    [
        ("acompact-1f", "Summarise.", False),
        ("aprompt_suggestion-1f", "Suggest.", False),
        ("aside_question-1f", "By the way?", False),
        ("a1f", "Warmup", False),
        ("a1f", "<system-reminder>Be brief.</system-reminder>\nWarmup", False),
        ("a1f", "[SUGGESTION MODE: Suggest what the user might type next.]", False),
        ("a1f", "Your task is to create a detailed summary of the conversation so far.", False),
        ("a1f", "Your task is to create a detailed summary of cart.py.", True),
        ("a1f", "Warmup the oven", True),
        ("acompact-helper-4a5b", "Find it.", True),
        ("acompactor", "Find it.", True),
    ],
)
@pytest.mark.parametrize("apart", [True, False])
def test_questions_of_claude_codes_own_are_no_turns_of_the_session(
    write_jsonl: Write, tmp_path: Path, agent: str, asked: str, counts: bool, apart: bool
) -> None:
    side = {"isSidechain": True, "agentId": agent}
    lines = [line("x1", None, "user", asked, **side), answer("x2", "x1", "done", **side)]
    write_jsonl("all/s.jsonl", OLD if apart else [*OLD, *lines])
    if apart:
        write_jsonl(f"all/s/subagents/agent-{agent}.jsonl", lines)
    found = read_source(resolve_source(str(tmp_path / "all")))
    assert (f"s/agent-{agent}" in contexts(found)) == counts
    assert [r.reason for r in found.report.lost_turns] == ([] if counts else ["side_query"])
    assert found.report.lines["side_query"] == (0 if counts else 2)


def test_an_agent_that_was_warmed_up_and_then_given_work_counts(write_jsonl: Write) -> None:
    side = {"isSidechain": True, "agentId": "a1f"}
    lines = [
        line("x1", None, "user", "Warmup", **side),
        answer("x2", "x1", "ready", **side),
        line("x3", "x2", "user", "Find the bug.", **side),
        answer("x4", "x3", "found", **side),
    ]
    found = read_claude_code(write_jsonl("s.jsonl", [*OLD, *lines]))
    assert contexts(found)["s/agent-a1f"] == ["Warmup", "ready", "Find the bug.", "found"]


# What stands inside a message, before a boundary, or at the edge of a rule.


def calls(*ids: str, words: str = "") -> list[dict[str, Any]]:
    return [*(text(words) if words else []), *(block for name in ids for block in call(name))]


def attached(uuid: str, parent: str, words: str) -> dict[str, Any]:
    return line(uuid, parent, "attachment", attachment={"type": "hook_additional_context", "content": [words]})


INSIDE = {
    "between parallel results": [
        line("2", "1", "assistant", calls("a"), mid="m", requestId="r"),
        line("3", "2", "assistant", calls("b"), mid="m", requestId="r"),
        line("4", "3", "user", result("a", "A")),
        attached("5", "4", "hook"),
        line("6", "5", "user", result("b", "B")),
    ],
    "between a call and its result": [
        line("2", "1", "assistant", calls("a", "b"), mid="m", requestId="r"),
        attached("5", "2", "hook"),
        line("6", "5", "user", [*result("a", "A"), *result("b", "B")]),
    ],
    "between two lines of a message": [
        line("2", "1", "assistant", calls("a"), mid="m", requestId="r"),
        attached("5", "2", "hook"),
        line("3", "5", "assistant", calls("b"), mid="m", requestId="r"),
        line("6", "3", "user", [*result("a", "A"), *result("b", "B")]),
    ],
}


@pytest.mark.parametrize("inside", INSIDE.values(), ids=INSIDE)
def test_what_a_hook_says_inside_a_message_stands_behind_its_results(write_jsonl: Write, inside: list[Any]) -> None:
    found = read_claude_code(
        write_jsonl("s.jsonl", [line("1", None, "user", "one"), *inside, answer("7", "6", "four")])
    )
    assert contexts(found)["s"] == ["one", "", "A", "B", "hook", "four"]
    assert set(found.report.fates.values()) == {"conversation"}


def test_a_prompt_that_waited_for_a_compaction_stands_behind_its_summary(write_jsonl: Write) -> None:
    lines = [*OLD, line("3", "2", "user", "three"), boundary("b", "2"), summary("s", "b"), answer("4", "3", "four")]
    found = read_claude_code(write_jsonl("s.jsonl", lines))
    assert contexts(found) == {"s": ["one", "two", "three"], "s#2": ["summary\nthree", "four"]}


@pytest.mark.parametrize("named", ["1", "2", "b", "s"])
def test_a_boundary_closes_the_live_context_whatever_place_before_it_names(write_jsonl: Write, named: str) -> None:
    lines = [
        *OLD,
        boundary("b", "2"),
        summary("s", "b"),
        line("3", "s", "user", "three"),
        answer("4", "3", "four"),
        boundary("c", named),
        summary("t", "c", "second"),
        line("5", "4", "user", "five"),
        answer("6", "5", "six"),
    ]
    found = read_claude_code(write_jsonl("s.jsonl", lines))
    assert contexts(found)["s#3"] == ["second\nfive", "six"]


def test_a_whole_tail_that_is_written_again_stands_once(write_jsonl: Write) -> None:
    """Only its first line has another parent; the others name lines that are written again too."""
    tail = [line("3", "2", "user", "three"), answer("4", "3", "four")]
    kept = {"headUuid": "3", "anchorUuid": "s", "tailUuid": "4"}
    lines = [
        *OLD,
        *tail,
        boundary("b", "4", preservedSegment=kept),
        summary("s", "b"),
        {**tail[0], "parentUuid": "s"},
        tail[1],
        line("5", "4", "user", "five"),
        answer("6", "5", "six"),
    ]
    found = read_claude_code(write_jsonl("s.jsonl", lines))
    assert contexts(found)["s#2"] == ["summary\nthree", "(four)", "five", "six"]


def test_a_hook_is_said_again_behind_a_compaction(write_jsonl: Write) -> None:
    lines = [
        saved(None),
        line("1", "h", "user", "one"),
        answer("2", "1", "two"),
        boundary("b", "2"),
        summary("s", "b"),
        saved("s"),
        line("3", "h", "user", "three"),
        answer("4", "3", "four"),
    ]
    found = read_claude_code(write_jsonl("s.jsonl", lines))
    assert contexts(found)["s#2"] == ["summary\nBe kind.\nthree", "four"]


def test_a_tool_loop_whose_provider_has_one_message_id(write_jsonl: Write) -> None:
    lines: list[Any] = [line("u", None, "user", "go")]
    for number in range(3):
        made = line(f"a{number}", lines[-1]["uuid"], "assistant", calls(f"c{number}", words=f"[{number}]"), mid="msg")
        made["message"]["stop_reason"] = "tool_use"
        lines += [made, line(f"r{number}", f"a{number}", "user", result(f"c{number}", "ok"))]
    found = read_claude_code(write_jsonl("s.jsonl", lines))
    assert contexts(found)["s"] == ["go", "[0]", "ok", "[1]", "ok", "[2]", "ok"]


@pytest.mark.parametrize("block", [{"type": "redacted_thinking", "data": "x"}, *text("OK.")])
def test_equal_blocks_behind_each_other_are_no_replay(write_jsonl: Write, block: dict[str, Any]) -> None:
    lines = [
        line("1", None, "user", "one"),
        line("2", "1", "assistant", [block], mid="m", requestId="r"),
        line("3", "2", "assistant", [block], mid="m", requestId="r"),
        line("4", "3", "assistant", text("done"), mid="m", requestId="r"),
    ]
    found = read_claude_code(write_jsonl("s.jsonl", lines))
    assert len(found.sessions[0].assistant_turns()) == len(found.sessions[0].messages) - 1 == 1


def test_another_answer_under_the_same_uuid_is_another_turn(write_jsonl: Write) -> None:
    lines = [*OLD, line("3", "2", "user", "three"), {**answer("2", "3", "four"), "uuid": "2"}, answer("5", "2", "five")]
    found = read_claude_code(write_jsonl("s.jsonl", lines))
    assert contexts(found) == {"s": ["one", "two", "three", "four", "five"]}


@pytest.mark.parametrize(
    ("first", "cut"),
    [
        (line("0", None, "user", "left over"), True),
        (line("0", "gone", "attachment", attachment={"type": "plan_mode_exit"}), False),
        (summary("0", "gone"), False),
    ],
)
def test_the_root_decides_whether_the_beginning_is_missing(write_jsonl: Write, first: Any, cut: bool) -> None:
    parent = "gone" if cut else "0"
    lines = [first, line("1", parent, "user", "one"), answer("2", "1", "two")]
    found = read_claude_code(write_jsonl("s.jsonl", lines))
    assert [m.status for s in found.sessions for m in s.messages if m.role == "assistant"] == [
        "cut_context" if cut else None
    ]


def test_a_session_that_goes_on_over_three_files_is_whole(write_jsonl: Write, tmp_path: Path) -> None:
    write_jsonl("all/a.jsonl", OLD)
    write_jsonl("all/b.jsonl", [{**x, "sessionId": "t"} for x in (line("3", "2", "user", "3"), answer("4", "3", "4"))])
    write_jsonl("all/c.jsonl", [{**x, "sessionId": "u"} for x in (line("5", "4", "user", "5"), answer("6", "5", "6"))])
    found = read_source(resolve_source(str(tmp_path / "all")))
    assert contexts(found)["u"] == ["one", "(two)", "3", "(4)", "5", "6"]
    assert {s.group for s in found.sessions} == {"s"}


@pytest.mark.parametrize("packed", ["a.jsonl.gz", "a.json"])
def test_a_parent_is_found_in_every_file_that_is_read(write_jsonl: Write, tmp_path: Path, packed: str) -> None:
    write_jsonl("all/b.jsonl", [{**x, "sessionId": "t"} for x in (line("3", "2", "user", "3"), answer("4", "3", "4"))])
    content = "".join(json.dumps(x) + "\n" for x in OLD) if packed.endswith(".gz") else json.dumps(OLD)
    file = tmp_path / "all" / packed
    file.write_bytes(gzip.compress(content.encode()) if packed.endswith(".gz") else content.encode())
    (tmp_path / "all" / "damaged.jsonl.gz").write_bytes(gzip.compress(b'{"uuid": "9"}')[:15])
    found = read_source(resolve_source(str(tmp_path / "all")))
    assert contexts(found)["t"] == ["one", "(two)", "3", "4"]
    assert found.report.notes["unreadable_files"] == 1


def test_a_plain_subagent_has_a_context_of_its_own_whatever_its_first_line_names(
    write_jsonl: Write, tmp_path: Path
) -> None:
    side = {"isSidechain": True, "agentId": "x1"}
    write_jsonl("all/s.jsonl", OLD)
    agent = [line("p1", "2", "user", "task", **side), answer("p2", "p1", "done", **side)]
    write_jsonl("all/s/subagents/agent-x1.jsonl", agent)
    found = read_source(resolve_source(str(tmp_path / "all")))
    assert contexts(found)["s/agent-x1"] == ["task", "done"]


def test_prompts_without_words_wait_for_nobody(write_jsonl: Write) -> None:
    lines = [
        line("1", None, "user", "one"),
        line("2", "1", "assistant", call("c"), mid="m1"),
        queue("enqueue", content="go"),
        queue("enqueue"),
        line("3", "2", "user", result("c", "ok")),
        queue("remove"),
        answer("4", "3", "four"),
    ]
    found = read_claude_code(write_jsonl("s.jsonl", lines))
    assert contexts(found)["s"] == ["one", "", "ok", "go", "four"]


def test_an_interrupt_names_the_turn_above_it_if_its_id_is_used_again(write_jsonl: Write) -> None:
    lines = [
        line("1", None, "user", "one"),
        line("2", "1", "assistant", text("two"), mid="msg", requestId="r1"),
        line("3", "2", "user", text("[Request interrupted by user]"), interruptedMessageId="msg"),
        line("4", "3", "user", "four"),
        line("5", "4", "assistant", text("five"), mid="msg", requestId="r2"),
    ]
    (session,) = read_claude_code(write_jsonl("s.jsonl", lines)).sessions
    assert [m.status for m in session.messages if m.role == "assistant"] == ["interrupted", None]
