from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sdft_cli.engine.passes.depth_first_order import Enter, Leave, Span, Tail, even_spans, walk

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=7)


def test_a_walk_by_hand() -> None:
    rows = [[5, 6, 7, 8, 1, 1], [5, 6, 7, 8, 9, 2], [5, 6, 3, 3], [4, 4]]
    assert list(walk(rows, [5, 5, 3, 1], 10, shortest=2)) == [
        Tail(3, [(0, 2)]),
        Enter(2, (0, 2)),
        Tail(2, [(2, 4)]),
        Enter(0, (2, 4)),
        Tail(0, [(4, 6)]),
        Tail(1, [(4, 6)]),
        Leave(),
        Leave(),
    ]


def test_long_parts_are_cut_and_short_common_parts_are_not_shared() -> None:
    rows = [[1] * 9 + [2, 2], [1] * 9 + [3], [1] * 4 + [4]]
    events = list(walk(rows, [9, 9, 4], 4, shortest=5))
    assert events == [
        Tail(2, [(0, 2), (2, 5)]),
        Enter(0, (0, 3)),
        Enter(0, (3, 6)),
        Enter(0, (6, 9)),
        Tail(0, [(9, 11)]),
        Tail(1, [(9, 10)]),
        Leave(),
        Leave(),
        Leave(),
    ]


FORK_INSIDE_A_CUT_PART = [[0] * 7 + [2, 2], [0] * 7 + [1, 1, 1], [0] * 7 + [1, 1, 1]]


@settings(max_examples=300)
@given(SEQUENCES, st.integers(0, 3), st.integers(3, 8), st.integers(2, 8))
@example(FORK_INSIDE_A_CUT_PART, 1, 3, 8)
def test_what_is_entered_and_the_tail_spell_each_sequence(
    rows: list[list[int]], private: int, longest: int, shortest: int
) -> None:
    shareable = [max(0, len(row) - private) for row in rows]
    path: list[tuple[Span, list[int]]] = []
    seen = []
    for event in walk(rows, shareable, longest, shortest):
        if isinstance(event, Leave):
            path.pop()
            continue
        spans = event.spans if isinstance(event, Tail) else [event.span]
        position = path[-1][0][1] if path else 0
        for start, stop in spans:
            assert start == position
            assert 0 < stop - start <= longest
            position = stop
        if isinstance(event, Enter):
            start, stop = event.span
            assert stop - start >= 2
            path.append((event.span, rows[event.sequence][start:stop]))
        else:
            seen.append(event.sequence)
            row = rows[event.sequence]
            own = [token for _, tokens in path for token in tokens]
            assert own == row[: len(own)]
            assert len(own) <= shareable[event.sequence]
            assert position == len(row)
            assert all(stop - start >= 2 for start, stop in spans) or len(row) - len(own) == 1
    assert not path
    assert sorted(seen) == list(range(len(rows)))


@given(SEQUENCES)
def test_shared_tokens_are_entered_once_and_only_if_they_are_shared(rows: list[list[int]]) -> None:
    """With forks allowed everywhere, what is entered are the prefixes that two sequences have in common."""
    double = [[x for token in row for x in (token, token)] for row in rows]  # so that forks are 2 tokens apart
    entered: list[tuple[int, ...]] = []
    for event in walk(double, [len(row) for row in double], 1000, 2):
        if isinstance(event, Enter):
            start, stop = event.span
            entered += [tuple(double[event.sequence][:end]) for end in range(start + 1, stop + 1)]
    assert len(entered) == len(set(entered))
    prefixes = [tuple(row[:end]) for row in double for end in range(1, len(row) + 1)]
    assert set(entered) == {prefix for prefix in prefixes if prefixes.count(prefix) > 1}


def test_even_spans() -> None:
    assert even_spans(3, 13, 4) == [(3, 6), (6, 9), (9, 13)]
    assert even_spans(3, 4, 4) == [(3, 4)]
    assert even_spans(3, 3, 4) == []


def test_bounds_that_are_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match="at least"):
        list(walk([[1]], [0], 2))
    with pytest.raises(ValueError, match="at least"):
        list(walk([[1]], [0], 3, shortest=1))
