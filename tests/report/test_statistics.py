from __future__ import annotations

import statistics as standard
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdft_cli.errors import DataError
from sdft_cli.records import Message, RecordRow, Rejection, Session, ToolCall
from sdft_cli.records.reasons import Candidate, first_reason
from sdft_cli.report.statistics import (
    CapChoice,
    Histogram,
    Summary,
    ToolUse,
    dataset_statistics,
    histogram_of,
    statistics_of,
    summary_of,
)
from tests.datasets import manifest_of, row, store

SESSION = Session(
    "s",
    (
        Message("user", "a"),
        Message(
            "assistant", "", (ToolCall("1", "Read", "{}"), ToolCall("2", "Read", "{}"), ToolCall("3", "Bash", "{}"))
        ),
        Message("assistant", "", (ToolCall("4", "Bash", "{}"),)),
        Message("assistant", "b"),
    ),
)
OTHER = Session("t", (Message("user", "a"), Message("assistant", "b")))


def test_summary() -> None:
    assert summary_of([]) is None
    assert summary_of([7]) == Summary(1, 7, 7, 7, 7)
    assert summary_of(range(10, 0, -1)) == Summary(10, 1, 5, 9, 10)


@settings(deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1))
def test_median_is_the_lower_median(values: list[int]) -> None:
    found = summary_of(values)
    assert found is not None
    assert found.median == standard.median_low(values)
    assert sum(v <= found.p90 for v in values) >= 0.9 * len(values) > sum(v < found.p90 for v in values)


def test_histogram_borders_are_inclusive_above() -> None:
    assert histogram_of([2, 3, 4, 5, 8], [9], 4) == Histogram((1, 2, 4, 8, 16), (1, 2, 2, 0), (0, 0, 0, 1))
    assert histogram_of([1], [], None) == Histogram((0, 1), (1,), (0,))
    assert histogram_of([1], [], 3) == Histogram((0, 1, 2, 4), (1, 0, 0), (0, 0, 0))  # the cap is always on it
    assert histogram_of([], [], None) == Histogram((), (), ())


@settings(deadline=None)
@given(st.lists(st.integers(1, 200_000), max_size=30), st.lists(st.integers(1, 200_000), max_size=30))
def test_every_number_is_in_its_bin(kept: list[int], over: list[int]) -> None:
    found = histogram_of(kept, over, None)
    for values, counts in ((kept, found.kept), (over, found.over_cap)):
        bins = zip(found.edges, found.edges[1:], strict=False)
        assert counts == tuple(sum(low < v <= high for v in values) for low, high in bins)
        assert sum(counts) == len(values)


def over(caps: dict[str, int], row: RecordRow) -> str | None:
    """Return the reason for which `prepare` rejects a turn of these lengths, if any."""
    session = Session("s", (Message("user", "a"), Message("assistant", "b")))
    reason = first_reason(Candidate(session, 1, False, caps, lambda: row))
    return reason and reason.key


LENGTHS = st.tuples(st.integers(1, 300), st.integers(1, 300), st.integers(1, 150))


@settings(max_examples=100, deadline=None)
@given(st.lists(LENGTHS, min_size=1, max_size=20), st.integers(1, 200), st.integers(1, 100), st.integers(0, 200))
def test_a_cap_keeps_what_prepare_would_keep(
    lengths: list[tuple[int, int, int]], prompt: int, rollout: int, room: int
) -> None:
    caps = {"max_prompt_tokens": prompt, "max_rollout_tokens": rollout, "max_seq_tokens": prompt + room}
    rows, rejected = [], []
    for index, (student, teacher, reference) in enumerate(lengths):
        row = RecordRow(f"s/{index}", "s", index, student, teacher, reference, False)
        reason = over(caps, row)
        if reason:
            rejected.append(Rejection(f"s/{index}", "s", index, reason, "", student, teacher, reference))
        else:
            rows.append(row)
    found = statistics_of({"config": caps}, [], rows, rejected)
    assert found.measured == len(lengths)
    for name, choices in found.caps.items():
        assert [c.kept for c in choices if c.current] == [len(rows)]
        assert [c.value for c in choices] == sorted({c.value for c in choices})
        for choice in choices:
            other = {**caps, name: choice.value}
            assert choice.kept == sum(over(other, RecordRow("", "s", 1, *x, False)) is None for x in lengths)


def test_a_dataset(tmp_path: Path) -> None:
    rejected = [
        Rejection("s/3", "s", 3, "over_rollout_cap", "", 30, 90, 50),
        Rejection("t/1", "t", 1, "empty_reference"),
        Rejection("t/abandoned", "t", None, "abandoned_branch"),
    ]
    rows = [row(SESSION, 1, 10, 20, 5)], [row(SESSION, 2, 12, 30, 6)]
    found = dataset_statistics(store(tmp_path / "d", [SESSION, OTHER], *rows, rejected))
    assert found.measured == 3
    assert [length.name for length in found.lengths] == [
        "prompt_tokens",
        "teacher_prompt_tokens",
        "reference_tokens",
        "sequence_tokens",
    ]
    assert [length.kept for length in found.lengths] == [
        Summary(2, 10, 10, 12, 12),
        Summary(2, 20, 20, 30, 30),
        Summary(2, 5, 5, 6, 6),
        Summary(2, 25, 25, 36, 36),
    ]
    assert [length.cap for length in found.lengths] == [None, 100, 40, 120]
    assert found.lengths[2].histogram == Histogram((4, 8, 16, 32, 64), (2, 0, 0, 0), (0, 0, 0, 1))
    assert found.session_turns == Summary(2, 1, 1, 3, 3)
    assert found.session_tokens == Summary(1, 80, 80, 80, 80)  # 30 + 50; the other session was never tokenised
    assert found.tools == (ToolUse("Bash", 2, 2), ToolUse("Read", 2, 2))
    assert found.caps["max_rollout_tokens"] == (
        CapChoice(10, 2, False),
        CapChoice(20, 2, False),
        CapChoice(40, 2, True),
        CapChoice(50, 2, False),  # 90 + 50 is over max_seq_tokens
    )
    assert found.as_dict()["tools"][0] == {"name": "Bash", "calls": 2, "in_records": 2}


def test_a_manifest_without_caps_and_a_rejection_without_lengths_are_refused() -> None:
    with pytest.raises(DataError, match="no max_prompt_tokens and no max_rollout_tokens"):
        statistics_of({}, [], [], [])
    with pytest.raises(DataError, match="s/1 was rejected by a cap without its lengths"):
        statistics_of(manifest_of(0), [], [], [Rejection("s/1", "s", 1, "over_prompt_cap")])
