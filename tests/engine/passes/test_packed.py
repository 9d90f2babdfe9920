from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sdft_cli.engine.passes.packed import build_tree, common_prefix, shared_passes

# Few distinct tokens, so that prefixes are shared, equal, empty, or end inside another branch.
SEQUENCES = st.lists(st.lists(st.integers(0, 2), max_size=8), max_size=8)


def test_a_tree_by_hand() -> None:
    tree = build_tree([[5, 6, 7], [5, 6, 8, 9], [5, 6], [4]])
    assert tree.ids.tolist() == [4, 5, 6, 7, 8, 9]
    assert tree.depths.tolist() == [0, 0, 1, 2, 2, 3]
    assert [row.tolist() for row in tree.rows] == [[1, 2, 3], [1, 2, 4, 5], [1, 2], [0]]
    assert [(b.start, b.stop, b.path.tolist()) for b in tree.branches] == [
        (0, 1, []),
        (1, 3, []),
        (3, 4, [1, 2]),
        (4, 6, [1, 2]),
    ]
    assert tree.ends().tolist() == [1, 6, 6, 4, 6, 6]


@given(SEQUENCES)
def test_every_sequence_is_spelled_by_its_row_and_every_prefix_is_stored_once(sequences: list[list[int]]) -> None:
    tree = build_tree(sequences)
    assert [tree.ids[row].tolist() for row in tree.rows] == sequences
    assert [tree.depths[row].tolist() for row in tree.rows] == [list(range(len(s))) for s in sequences]
    assert len(tree) == len({tuple(s[: i + 1]) for s in sequences for i in range(len(s))})


@given(SEQUENCES)
def test_a_branch_sees_its_own_past_and_nothing_else(sequences: list[list[int]]) -> None:
    tree = build_tree(sequences)
    pasts = {tuple(row[: position + 1]) for row in tree.rows for position in range(len(row))}
    found = [
        (*branch.path, *range(branch.start, stop + 1))
        for branch in tree.branches
        for stop in range(branch.start, branch.stop)
    ]
    assert sorted(pasts) == sorted(found)


@given(SEQUENCES, st.integers(1, 20), st.none() | st.integers(1, 3))
def test_passes_hold_every_sequence_once_and_keep_to_the_cap(
    sequences: list[list[int]], cap: int, items: int | None
) -> None:
    groups = shared_passes(sequences, cap, items)
    assert sorted(i for group in groups for i in group) == list(range(len(sequences)))
    for group in groups:
        assert len(group) == 1 or len(build_tree([sequences[i] for i in group])) <= cap
        assert items is None or len(group) <= items


def test_common_prefix() -> None:
    assert common_prefix(np.array([1, 2, 3]), np.array([1, 2])) == 2
    assert common_prefix(np.array([1]), np.array([2])) == 0
    assert common_prefix(np.array([], dtype=int), np.array([2])) == 0
