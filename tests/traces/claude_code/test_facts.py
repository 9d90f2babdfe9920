from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdft_cli.records import read_dataset, write_dataset
from sdft_cli.traces.claude_code.facts import MOST_TOKENS, is_tested, prompt_tokens
from sdft_cli.traces.claude_code.lines import Line
from sdft_cli.traces.claude_code.reader import read_claude_code
from sdft_cli.traces.source import read_source, resolve_source
from sdft_cli.traces.types import ReadReport
from tests.traces.lines import call, line, result, text

Write = Callable[..., Path]


def usage(read: Any = 0, written: Any = 0, fresh: Any = 0, output: int = 1) -> dict[str, Any]:
    """What an API message says it cost; the first three add up to its prompt."""
    return {
        "input_tokens": fresh,
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": written,
        "output_tokens": output,
    }


def answer(uuid: str, parent: str, content: Any, mid: str, stated: Any, **extra: Any) -> dict[str, Any]:
    """A line of an assistant message that states a usage."""
    made = line(uuid, parent, "assistant", content, mid=mid, **extra)
    made["message"]["usage"] = stated
    return made


def seen(path: Path) -> tuple[list[int | None], Counter[str]]:
    """The prompts that the turns of a file's first session state, and the notes that are not 0."""
    found = read_claude_code(path)
    messages = found.sessions[0].messages
    return [m.seen_tokens for m in messages if m.role == "assistant"], +found.report.notes


def test_a_turn_says_how_many_tokens_its_prompt_had(write_jsonl: Write) -> None:
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", None, "user", "hello"),
            answer("2", "1", text("I look."), "m", usage(1000, 200, 30, output=1)),
            answer("3", "2", call("c"), "m", usage(1000, 200, 30, output=77)),
            line("4", "3", "user", result("c", "body")),
            answer("5", "4", text("It says body."), "n", usage(1230, 50)),
            line("6", "5", "user", "thanks"),
            line("7", "6", "assistant", text("welcome"), mid="o"),
        ],
    )
    assert seen(path) == ([1230, 1280, None], {})
    others = [m.seen_tokens for m in read_claude_code(path).sessions[0].messages if m.role != "assistant"]
    assert others == [None] * 3


def test_the_largest_of_different_prompts_counts(write_jsonl: Write) -> None:
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", None, "user", "hello"),
            answer("2", "1", text("a"), "m", usage(fresh=10)),
            answer("3", "2", text("b"), "m", usage(fresh=30)),
            answer("4", "3", text("c"), "m", usage(fresh=20)),
        ],
    )
    assert seen(path) == ([30], {"contradictory_usage": 1})


@pytest.mark.parametrize(
    "stated",
    [
        *({}, [], "12", 12, True),
        *(usage(), usage(-1, 5), usage(True), usage(1.5), usage("7"), usage([1]), usage(MOST_TOKENS + 1)),
        usage(10**400),
        {"input_tokens": {"input_tokens": 3}},
    ],
    ids=str,
)
def test_what_cannot_be_a_count_is_left_out_and_counted(write_jsonl: Write, stated: Any) -> None:
    lines = [line("1", None, "user", "hello"), answer("2", "1", text("a"), "m", stated)]
    assert seen(write_jsonl("s.jsonl", lines)) == ([None], {"bad_usage": 1})
    lines.append(answer("3", "2", text("b"), "m", usage(fresh=5)))
    assert seen(write_jsonl("t.jsonl", lines)) == ([5], {"bad_usage": 1})


def test_a_missing_count_is_nothing_and_no_usage_is_no_fault(write_jsonl: Write) -> None:
    stated = {"input_tokens": 3, "cache_read_input_tokens": None}
    lines = [line("1", None, "user", "hello"), answer("2", "1", text("a"), "m", stated)]
    assert seen(write_jsonl("s.jsonl", lines)) == ([3], {})
    lines = [line("1", None, "user", "hello"), answer("2", "1", text("a"), "m", None)]
    assert seen(write_jsonl("t.jsonl", lines)) == ([None], {})


@given(
    st.dictionaries(
        st.sampled_from(["input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "other"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "7"]),
    )
)
def test_any_usage_is_a_count_or_counted(stated: dict[str, Any]) -> None:
    data = {"type": "assistant", "message": {"content": "a", "usage": stated}}
    notes = Counter[str]()
    found = prompt_tokens([Line(1, data, "assistant", "u", None)], notes)
    parts = [value for key, value in stated.items() if key != "other" and value is not None]
    good = all(type(part) is int and 0 <= part <= MOST_TOKENS for part in parts) and sum(parts) > 0
    assert found == (sum(parts) if good else None)
    assert notes["bad_usage"] == (not good)


def test_messages_of_claude_code_itself_and_server_tools_state_no_prompt(write_jsonl: Write) -> None:
    search = [
        {"type": "text", "text": "I search."},
        {"type": "server_tool_use", "id": "w", "name": "web_search", "input": {"query": "x"}},
        {"type": "web_search_tool_result", "tool_use_id": "w", "content": []},
        {"type": "text", "text": "Found."},
    ]
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", None, "user", "hello"),
            answer("2", "1", search, "m", usage(fresh=9000)),
            line("3", "2", "user", "stop"),
            answer("4", "3", text("No response requested."), "n", usage(), model="<synthetic>"),
        ],
    )
    tokens, notes = seen(path)
    assert tokens == [None, None, None]
    assert notes == {"server_tool_results": 1}


def test_a_turn_that_another_file_has_as_its_own_states_no_prompt(write_jsonl: Write) -> None:
    lines = [line("1", None, "user", "hello"), answer("2", "1", text("a"), "m", usage(fresh=50))]
    write_jsonl("in/a.jsonl", lines)
    more = [line("3", "2", "user", "more"), answer("4", "3", text("b"), "n", usage(fresh=70))]
    path = write_jsonl("in/b.jsonl", [*lines, *more])
    first, second = read_source(resolve_source(str(path.parent))).sessions
    assert [m.seen_tokens for m in first.messages] == [None, 50]
    assert [m.seen_tokens for m in second.messages] == [None, None, None, 70]


def test_token_counts_of_a_provider_are_never_written(write_jsonl: Write, tmp_path: Path) -> None:
    path = write_jsonl("s.jsonl", [line("1", None, "user", "hi"), answer("2", "1", text("a"), "m", usage(fresh=5))])
    sessions = read_claude_code(path).sessions
    folder = write_dataset(tmp_path / "d", sessions, {"train": [], "validation": []}, [], {})
    (stored,) = read_dataset(folder).sessions.values()
    assert [m.seen_tokens for m in sessions[0].messages] == [None, 5]
    assert [m.seen_tokens for m in stored.messages] == [None, None]


@pytest.mark.parametrize(
    ("version", "tested"),
    [
        ("2.0.0", True),
        ("2.1.42", True),
        ("2.1.42-beta.1", True),
        ("2.1.43", False),
        ("2.1.259", False),
        ("2.1.260", True),
        ("2.1.289", True),
        ("2.1.290", False),
        ("2.2.0", False),
        ("1.0.128", False),
        ("10.0.0", False),
        ("2.1", False),
        ("v2.0.1", False),
        ("\u0662.0.1", False),
        ("9" * 5000 + ".0.0", False),
    ],
)
def test_tested_versions(version: str, tested: bool) -> None:
    assert is_tested(version) == tested


def test_lines_of_other_versions_are_counted(write_jsonl: Write) -> None:
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", None, "user", "hello", version="2.1.37"),
            line("2", "1", "assistant", text("a"), version="2.2.0"),
            line("3", "2", "user", "more", version="2.2.0"),
            line("4", "3", "assistant", text("b"), version=7),
            line("5", "4", "user", "bye", version="next"),
        ],
    )
    report = read_claude_code(path).report
    assert report.unknown == {"version: 2.2.0": 2, "version: next": 1}
    merged = ReadReport(unknown=Counter({"version: next": 1, "line type: x": 4}))
    merged.merge(report)
    assert merged.unknown == {"version: next": 2, "version: 2.2.0": 2, "line type: x": 4}
