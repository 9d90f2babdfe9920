from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdft_cli.engine.intervals import Interval, session_interval


def test_the_mean_is_weighted_and_the_interval_is_that_of_all_resamples() -> None:
    # Two sessions, a with tokens 1 and 3, b with 2: the resamples are aa, ab, ba, bb with chances 1/4 each.
    found = session_interval([1.0, 2.0, 5.0], [1.0, 3.0, 2.0], ["a", "a", "b"], confidence=0.9)
    assert found.value == pytest.approx((1 + 6 + 10) / 6)
    assert (found.low, found.high) == pytest.approx((7 / 4, 5.0))
    narrow = session_interval([1.0, 2.0, 5.0], [1.0, 3.0, 2.0], ["a", "a", "b"], confidence=0.3)
    assert (narrow.low, narrow.high) == pytest.approx((17 / 6, 17 / 6))  # 0.35 and 0.65 lie in the middle half
    assert found.sessions == 2
    assert not found.degenerate


def test_quantiles_match_the_exact_distribution_of_resampled_sessions() -> None:
    values, weights, sessions = [0.3, -1.0, 2.0, 0.7, 1.1], [2.0, 1.0, 4.0, 3.0, 1.0], ["a", "a", "b", "c", "d"]
    tops = {s: sum(v * w for v, w, t in zip(values, weights, sessions, strict=True) if t == s) for s in "abcd"}
    bottoms = {s: sum(w for w, t in zip(weights, sessions, strict=True) if t == s) for s in "abcd"}
    exact = [sum(tops[s] for s in draw) / sum(bottoms[s] for s in draw) for draw in product("abcd", repeat=4)]
    found = session_interval(values, weights, sessions, confidence=0.8, resamples=20_000)
    assert found.low == pytest.approx(float(np.quantile(exact, 0.1)), abs=0.03)
    assert found.high == pytest.approx(float(np.quantile(exact, 0.9)), abs=0.03)


def test_records_of_one_session_count_as_one_observation() -> None:
    values = [float(i % 7) for i in range(40)]
    alone = session_interval(values, [1.0] * 40, [str(i) for i in range(40)])
    copies = session_interval(values * 9, [1.0] * 360, [str(i) for i in range(40)] * 9)
    assert copies == alone  # nine copies of each record make nothing surer
    assert alone.low is not None
    assert alone.high is not None
    naive = session_interval(values * 9, [1.0] * 360, [str(i) for i in range(360)])
    assert naive.high - naive.low < 0.5 * (alone.high - alone.low)  # type: ignore[operator]


def test_equal_values_and_single_sessions() -> None:
    assert session_interval([2.0, 2.0], [1.0, 5.0], ["a", "b"]) == Interval(2.0, 2.0, 2.0, 2, True)
    assert session_interval([0.1] * 3, [0.1, 0.2, 0.7], ["a", "b", "c"]).value == 0.1  # no rounding
    assert session_interval([1.0, 3.0], [1.0, 1.0], ["a", "a"]) == Interval(2.0, None, None, 1, False)
    assert session_interval([1.0], [1.0], ["a"]) == Interval(1.0, None, None, 1, True)


RECORDS = st.lists(st.tuples(st.floats(-5, 5), st.floats(0.1, 9), st.sampled_from("abcde")), min_size=1, max_size=15)


@given(RECORDS, st.randoms(use_true_random=False))
def test_order_does_not_matter_and_the_bounds_hold_the_values(
    records: list[tuple[float, float, str]], random: object
) -> None:
    def of(some: list[tuple[float, float, str]]) -> Interval:
        values, weights, sessions = zip(*some, strict=True)
        return session_interval(values, weights, sessions, resamples=50, seed=3)

    shuffled = list(records)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, two = of(records), of(shuffled)
    assert one.value == pytest.approx(two.value, abs=1e-9)
    assert (one.low is None) == (one.sessions < 2)
    if one.low is not None and one.high is not None:
        assert (one.low, one.high) == pytest.approx((two.low, two.high), abs=1e-9)
        values = [v for v, _, _ in records]
        assert min(values) - 1e-9 <= one.low <= one.high <= max(values) + 1e-9


@pytest.mark.parametrize(
    ("values", "weights", "sessions"),
    [([], [], []), ([1.0], [1.0, 2.0], ["a"]), ([math.nan], [1.0], ["a"]), ([1.0], [0.0], ["a"])],
)
def test_what_has_no_interval_is_refused(values: list[float], weights: list[float], sessions: list[str]) -> None:
    with pytest.raises(ValueError, match=r"belong together|must be finite"):
        session_interval(values, weights, sessions)
