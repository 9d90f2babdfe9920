from __future__ import annotations

import pytest

pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st

from sdft_cli.engine.parallel.share import shares, token_costs

ROWS = st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=9)


def distinct_tokens(rows: list[list[int]]) -> int:
    """The tokens of the tree of some rows: their distinct prefixes."""
    return len({tuple(row[: i + 1]) for row in rows for i in range(len(row))})


def cuts(order: list[int], count: int) -> list[list[list[int]]]:
    """All ways to cut an order into at most `count` stretches."""
    if count == 1:
        return [[order]]
    return [[order[:i], *rest] for i in range(len(order) + 1) for rest in cuts(order[i:], count - 1)]


@given(ROWS, st.integers(1, 12), st.booleans())
def test_each_row_is_in_one_share(rows: list[list[int]], count: int, shared: bool) -> None:
    found = shares(rows, count, shared)
    assert len(found) == count
    assert sorted(i for share in found for i in share) == list(range(len(rows)))
    assert found == shares(rows, count, shared)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(1, 3))
def test_no_cut_of_the_lexical_order_has_a_smaller_largest_share(rows: list[list[int]], count: int) -> None:
    """Costs by the definition, distinct prefixes, for all cuts there are."""
    order = sorted(range(len(rows)), key=lambda i: (rows[i], i))
    for shared in (True, False):

        def cost(share: list[int], shared: bool = shared) -> int:
            own = [rows[i] for i in share]
            return distinct_tokens(own) if shared else sum(map(len, own))

        best = min(max(map(cost, cut)) for cut in cuts(order, count))
        assert max(map(cost, shares(rows, count, shared))) == best


@given(ROWS)
def test_costs_are_the_tokens_of_the_tree(rows: list[list[int]]) -> None:
    ordered = sorted(rows)
    whole, added = token_costs(ordered)
    assert whole == [len(row) for row in ordered]
    assert sum(added) == distinct_tokens(ordered)


def test_turns_of_a_session_stay_together() -> None:
    """Two sessions whose turns extend each other, mixed: a process gets one of them."""
    one, other = list(range(100)), list(range(200, 300))
    rows = [one[:40], other[:50], one[:70], other[:90], one, other]
    assert shares(rows, 2) == [[0, 2, 4], [1, 3, 5]]
    assert shares(rows, 6)[2:] == [[], [], [], []]  # more processes would compute prefixes again, and none be faster
