from __future__ import annotations

import math
from itertools import product
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdft_cli.engine.intervals import Interval, Ratio, paired_interval, session_interval


def test_the_mean_is_weighted_and_the_interval_is_that_of_all_resamples() -> None:
    # Two sessions, a with tokens 1 and 3, b with 2: the resamples are aa, ab, ba, bb with chances 1/4 each.
    found = session_interval([1.0, 2.0, 5.0], [1.0, 3.0, 2.0], ["a", "a", "b"], confidence=0.9)
    assert found.value == pytest.approx((1 + 6 + 10) / 6)
    assert (found.low, found.high) == pytest.approx((7 / 4, 5.0))
    # Student's t with one degree of freedom is tan(pi (p - 1/2)); widened by sqrt(2), p = 0.45 becomes 0.41.
    narrow = session_interval([1.0, 2.0, 5.0], [1.0, 3.0, 2.0], ["a", "a", "b"], confidence=0.1)
    assert (narrow.low, narrow.high) == pytest.approx((17 / 6, 17 / 6))  # 0.41 and 0.59 lie in the middle half
    assert found.sessions == 2
    assert not found.degenerate


def test_quantiles_match_the_exact_distribution_of_resampled_sessions() -> None:
    values, weights, sessions = [0.3, -1.0, 2.0, 0.7, 1.1], [2.0, 1.0, 4.0, 3.0, 1.0], ["a", "a", "b", "c", "d"]
    tops = {s: sum(v * w for v, w, t in zip(values, weights, sessions, strict=True) if t == s) for s in "abcd"}
    bottoms = {s: sum(w for w, t in zip(weights, sessions, strict=True) if t == s) for s in "abcd"}
    exact = [sum(tops[s] for s in draw) / sum(bottoms[s] for s in draw) for draw in product("abcd", repeat=4)]
    found = session_interval(values, weights, sessions, confidence=0.8, resamples=20_000)
    level = NormalDist().cdf(-math.sqrt(4 / 3) * 1.637744)  # a table's t for 0.9 and three degrees of freedom
    assert found.low == pytest.approx(float(np.quantile(exact, level)), abs=0.03)
    assert found.high == pytest.approx(float(np.quantile(exact, 1 - level)), abs=0.03)
    # t for 0.9 and for the power of 0.8, times the corrected standard error of the exact distribution.
    expected = (1.637744 + 0.978472) * math.sqrt(4 / 3) * float(np.std(exact))
    assert found.detectable == pytest.approx(expected, rel=0.02)


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


def test_a_paired_interval_draws_both_sides_at_once() -> None:
    tokens, more = [4.0, 1.0, 3.0, 2.0], [5.0, 2.0, 2.0, 2.0]
    a, b, sessions = [2.0, 1.5, 0.3, 1.0], [1.0, 0.5, 0.9, 1.1], ["a", "a", "b", "c"]
    index = {"a": [0, 1], "b": [2], "c": [3]}

    def of(draw: tuple[str, ...]) -> float:
        rows = [i for s in draw for i in index[s]]
        return sum(a[i] for i in rows) / sum(tokens[i] for i in rows) - sum(b[i] for i in rows) / sum(
            more[i] for i in rows
        )

    exact = [of(draw) for draw in product("abc", repeat=3)]
    found = paired_interval(Ratio(a, tokens), Ratio(b, more), sessions, confidence=0.5, resamples=20_000)
    level = NormalDist().cdf(-math.sqrt(3 / 2) * 0.816497)  # t for 0.75 and two degrees of freedom
    assert found.value == pytest.approx(of(("a", "b", "c")))
    assert found.low == pytest.approx(float(np.quantile(exact, level)), abs=0.02)
    assert found.high == pytest.approx(float(np.quantile(exact, 1 - level)), abs=0.02)
    # With the same bottoms it is the interval of the records' differences.
    one = paired_interval(Ratio(a, tokens), Ratio(b, tokens), sessions)
    values = [(x - y) / t for x, y, t in zip(a, b, tokens, strict=True)]
    two = session_interval(values, tokens, sessions)
    assert (one.value, one.low, one.high) == pytest.approx((two.value, two.low, two.high))


def test_a_side_against_itself_differs_by_exactly_nothing() -> None:
    side = Ratio([0.1, 0.2, 0.3], [3.0, 7.0, 11.0])
    assert paired_interval(side, side, ["a", "b", "c"]) == Interval(0.0, 0.0, 0.0, 3, True)


def simulated(kind: str, count: int, random: np.random.Generator) -> tuple[Ratio, Ratio, list[str], float]:
    """Draw one to four records for each session, two models' results that depend on it, and the true difference."""
    session = np.repeat(np.arange(count), random.integers(1, 5, count))
    effect, n = random.normal(0, 1, count)[session], len(session)
    names = [str(i) for i in session]
    if kind == "shares":
        item = effect + random.normal(0, 1, n)
        a, b = (item + random.normal(0, 1, n) > limit for limit in (0.3, 0.8))
        true = NormalDist().cdf(-0.3 / math.sqrt(3)) - NormalDist().cdf(-0.8 / math.sqrt(3))
        return Ratio(a.astype(float), np.ones(n)), Ratio(b.astype(float), np.ones(n)), names, true
    tokens, more = random.integers(5, 120, n).astype(float), random.integers(5, 120, n).astype(float)
    if kind == "likelihood":
        more = tokens
    base = 1 + 0.3 * random.normal(0, 1, n) + 0.1 * effect
    tuned = 0.8 + 0.3 * random.normal(0, 1, n) + 0.3 * effect
    return Ratio(tuned * tokens, tokens), Ratio(base * more, more), names, -0.2


@pytest.mark.parametrize("kind", ["shares", "likelihood", "answers of other lengths"])
@pytest.mark.parametrize("count", [12, 40])
def test_intervals_of_95_percent_cover_the_truth_in_93_to_97_percent_of_simulations(kind: str, count: int) -> None:
    random, covered, simulations = np.random.default_rng(5), 0, 3_000
    for seed in range(simulations):
        a, b, sessions, true = simulated(kind, count, random)
        found = paired_interval(a, b, sessions, resamples=500, seed=seed)
        covered += found.low <= true <= found.high  # type: ignore[operator]
    assert 0.93 <= covered / simulations <= 0.97
