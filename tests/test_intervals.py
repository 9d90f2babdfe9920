from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations_with_replacement
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdft_cli.intervals import Interval, Ratio, paired_interval, session_interval


def every_draw(count: int) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every way to draw `count` of `count` sessions, how often each comes, and its chance."""
    for drawn in combinations_with_replacement(range(count), count):
        often = tuple(drawn.count(i) for i in range(count))
        yield often, math.factorial(count) / math.prod(map(math.factorial, often)) / count**count


def quantile(exact: list[tuple[float, float]], level: float) -> float:
    """The value below which a share `level` of (value, chance) lies."""
    total = 0.0
    for value, chance in sorted(exact):
        total += chance
        if total >= level:
            return value
    raise AssertionError


def test_the_mean_is_weighted_and_two_sessions_get_the_width_of_student() -> None:
    # Two sessions, a with tokens 1 and 3, b with 2: the resamples are aa, ab, ba, bb with chances 1/4 each.
    found = session_interval([1.0, 2.0, 5.0], [1.0, 3.0, 2.0], ["a", "a", "b"], confidence=0.9, resamples=20_000)
    value, draws = (1 + 6 + 10) / 6, [7 / 4, 17 / 6, 17 / 6, 5.0]
    assert found.value == pytest.approx(value)
    width = 6.313752 * math.sqrt(2) * float(np.std(draws))  # a table's t for 0.95 and one degree of freedom
    assert (found.low, found.high) == pytest.approx((value - width, value + width), rel=0.02)
    assert found.sessions == 2
    assert not found.degenerate


def test_quantiles_match_the_exact_distribution_of_resampled_sessions() -> None:
    values, weights = [0.3, -1.0, 2.0, 0.7, 1.1, -0.4, 0.9, 0.1, 1.6], [2.0, 1.0, 4.0, 3.0, 1.0, 2.0, 5.0, 1.0, 2.0]
    sessions = ["a", "a", *"bcdefgh"]
    tops = [sum(v * w for v, w, t in zip(values, weights, sessions, strict=True) if t == s) for s in "abcdefgh"]
    bottoms = [sum(w for w, t in zip(weights, sessions, strict=True) if t == s) for s in "abcdefgh"]
    exact = [(float(np.dot(often, tops) / np.dot(often, bottoms)), chance) for often, chance in every_draw(8)]
    found = session_interval(values, weights, sessions, confidence=0.8, resamples=40_000)
    level = NormalDist().cdf(-math.sqrt(8 / 7) * 1.414924)  # a table's t for 0.9 and seven degrees of freedom
    assert found.low == pytest.approx(quantile(exact, level), abs=0.02)
    assert found.high == pytest.approx(quantile(exact, 1 - level), abs=0.02)
    # t for 0.9 and for the power of 0.8, times the corrected standard error of the exact distribution.
    mean = sum(v * p for v, p in exact)
    error = math.sqrt(sum(p * (v - mean) ** 2 for v, p in exact))
    assert found.detectable == pytest.approx((1.414924 + 0.896030) * math.sqrt(8 / 7) * error, rel=0.02)


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
def test_order_does_not_matter_and_the_bounds_hold_the_value(
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
        assert one.low <= one.value <= one.high


@pytest.mark.parametrize(
    ("values", "weights", "sessions"),
    [([], [], []), ([1.0], [1.0, 2.0], ["a"]), ([math.nan], [1.0], ["a"]), ([1.0], [0.0], ["a"])],
)
def test_what_has_no_interval_is_refused(values: list[float], weights: list[float], sessions: list[str]) -> None:
    with pytest.raises(ValueError, match=r"belong together|must be finite"):
        session_interval(values, weights, sessions)


def test_a_paired_interval_draws_both_sides_at_once() -> None:
    tokens, more = [4.0, 1.0, 3.0, 2.0, 2.0, 6.0, 1.0, 3.0, 2.0], [5.0, 2.0, 2.0, 2.0, 1.0, 3.0, 2.0, 2.0, 4.0]
    a, b = [2.0, 1.5, 0.3, 1.0, 0.2, 3.0, 0.7, 1.0, 2.0], [1.0, 0.5, 0.9, 1.1, 0.4, 2.0, 0.1, 0.6, 2.4]
    sessions, of_session = ["a", "a", *"bcdefgh"], [0, 0, 1, 2, 3, 4, 5, 6, 7]
    sums = [np.bincount(of_session, x) for x in (a, tokens, b, more)]

    def of(often: tuple[int, ...]) -> float:
        top, bottom, other, under = (float(np.dot(often, x)) for x in sums)
        return top / bottom - other / under

    exact = [(of(often), chance) for often, chance in every_draw(8)]
    found = paired_interval(Ratio(a, tokens), Ratio(b, more), sessions, confidence=0.5, resamples=40_000)
    level = NormalDist().cdf(-math.sqrt(8 / 7) * 0.711142)  # t for 0.75 and seven degrees of freedom
    assert found.value == pytest.approx(of((1,) * 8))
    assert found.low == pytest.approx(quantile(exact, level), abs=0.01)
    assert found.high == pytest.approx(quantile(exact, 1 - level), abs=0.01)
    # With the same bottoms it is the interval of the records' differences.
    one = paired_interval(Ratio(a, tokens), Ratio(b, tokens), sessions)
    values = [(x - y) / t for x, y, t in zip(a, b, tokens, strict=True)]
    two = session_interval(values, tokens, sessions)
    assert (one.value, one.low, one.high) == pytest.approx((two.value, two.low, two.high))


def test_yes_or_no_items_get_half_an_item_for_each_outcome() -> None:
    ones, sessions = [1.0] * 15, [str(i) for i in range(15)]
    a = [1.0] + [0.0] * 14
    found = paired_interval(Ratio(a, ones), Ratio([0.0] * 15, ones), sessions, resamples=40_000, yes_or_no=True)
    # 17 draws from 15 items and four halves: a difference of +1 has a chance of 1.5 / 17, of -1 one of 0.5 / 17.
    chances = {1: 1.5 / 17, -1: 0.5 / 17, 0: 15 / 17}
    mean = chances[1] - chances[-1]
    error = math.sqrt((chances[1] + chances[-1] - mean**2) / 17)
    assert found.detectable == pytest.approx((2.119905 + 0.864667) * math.sqrt(17 / 16) * error, rel=0.02)
    assert found.value == pytest.approx(1 / 15)
    assert found.low is not None
    assert found.high is not None
    assert -0.2 < found.low < 0 < 0.2 < found.high < 0.3
    assert not found.degenerate


@pytest.mark.parametrize(("a", "b"), [(0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
def test_what_never_or_always_happened_may_be_otherwise_elsewhere(a: float, b: float) -> None:
    ones, sessions = [1.0] * 16, [str(i) for i in range(16)]
    found = paired_interval(Ratio([a] * 16, ones), Ratio([b] * 16, ones), sessions, yes_or_no=True)
    assert found.value == a - b
    assert found.degenerate == (a == b)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0 < found.high or abs(a - b) == 1  # 0.94 against 0 is what the rule of three gives: 3 / 16
    assert 0.1 < found.high - found.low < 0.5
    assert 0.1 < (found.detectable or 0) < 0.5


def test_a_constant_difference_is_a_point() -> None:
    sides = Ratio([0.3] * 7, [1.0] * 7), Ratio([0.1] * 7, [1.0] * 7)
    found = paired_interval(*sides, list("abcdefg"))
    assert found.low == found.value == found.high == pytest.approx(0.2)
    assert found.degenerate
    assert found.detectable is None


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
        found = paired_interval(a, b, sessions, resamples=500, seed=seed, yes_or_no=kind == "shares")
        covered += found.low <= true <= found.high  # type: ignore[operator]
    assert 0.93 <= covered / simulations <= 0.97


def flags(random: np.random.Generator, count: int, most: int, shares: tuple[float, float]) -> Any:
    """Draw yes-or-no results of two models on up to `most` records of each session, which depend on it."""
    session = np.repeat(np.arange(count), random.integers(1, most + 1, count))
    effect, n = random.normal(0, math.sqrt(0.4), count)[session], len(session)
    limits = [NormalDist().inv_cdf(share) if share else -math.inf for share in shares]
    a, b = (effect + random.normal(0, math.sqrt(0.6), n) < limit for limit in limits)
    sides = [Ratio(x.astype(float), np.ones(n)) for x in (a, b)]
    return *sides, [str(i) for i in session]


@pytest.mark.parametrize("shares", [(0.06, 0.0), (0.02, 0.0), (0.94, 0.0), (0.9, 0.85), (0.45, 0.3)])
@pytest.mark.parametrize(("count", "most"), [(5, 3), (15, 1), (15, 3), (40, 2)])
def test_intervals_of_rare_and_of_certain_events_cover_the_truth(
    shares: tuple[float, float], count: int, most: int
) -> None:
    random, covered, simulations = np.random.default_rng(7), 0, 600
    for seed in range(simulations):
        found = paired_interval(*flags(random, count, most, shares), resamples=300, seed=seed, yes_or_no=True)
        covered += found.low <= shares[0] - shares[1] <= found.high  # type: ignore[operator]
    assert covered / simulations >= 0.92


@pytest.mark.parametrize("shares", [(0.06, 0.0), (0.02, 0.0), (0.94, 0.0), (0.9, 0.85), (0.45, 0.3)])
@pytest.mark.parametrize(("count", "most"), [(5, 60), (12, 60)])
def test_intervals_of_long_sessions_cover_the_truth(count: int, most: int, shares: tuple[float, float]) -> None:
    """With half a record for each outcome it was 77% to 92% with 12 sessions."""
    random, covered, simulations = np.random.default_rng(7), 0, 400
    for seed in range(simulations):
        found = paired_interval(*flags(random, count, most, shares), resamples=300, seed=seed, yes_or_no=True)
        covered += found.low <= shares[0] - shares[1] <= found.high  # type: ignore[operator]
    assert covered / simulations >= 0.91


@pytest.mark.parametrize("records", [1, 2, 40])
@pytest.mark.parametrize(("a", "b"), [(0.0, 0.0), (1.0, 1.0), (1.0, 0.0)])
def test_what_is_alike_in_all_records_of_a_session_is_one_observation(records: int, a: float, b: float) -> None:
    """More records of the same sessions make nothing surer."""
    sessions = [str(i) for i in range(12)] * records
    ones = [1.0] * len(sessions)
    found = paired_interval(
        Ratio([a * x for x in ones], ones), Ratio([b * x for x in ones], ones), sessions, yes_or_no=True
    )
    one = paired_interval(Ratio([a] * 12, ones[:12]), Ratio([b] * 12, ones[:12]), sessions[:12], yes_or_no=True)
    assert (found.low, found.high) == pytest.approx((one.low, one.high))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_intervals_of_few_sessions_are_not_too_narrow(count: int) -> None:
    random, covered, simulations = np.random.default_rng(11), 0, 1_000
    names = [str(i) for i in range(count)]
    for seed in range(simulations):
        sides = (Ratio(random.normal(mean, 1, count), np.ones(count)) for mean in (0.5, 0.0))
        found = paired_interval(*sides, names, resamples=300, seed=seed)
        covered += found.low <= 0.5 <= found.high  # type: ignore[operator]
    assert covered / simulations >= 0.93


def test_an_effect_of_the_detectable_size_is_found_in_four_of_five_simulations() -> None:
    random, count = np.random.default_rng(3), 20
    names = [str(i) for i in range(count)]
    size = (2.093024 + 0.860951) / math.sqrt(count)  # t for 0.975 and 0.8, 19 degrees of freedom, deviation 1
    results = [
        paired_interval(
            Ratio(random.normal(size, 1, count), np.ones(count)),
            Ratio(np.zeros(count), np.ones(count)),
            names,
            seed=seed,
        )
        for seed in range(600)
    ]
    assert 0.76 <= np.mean([found.low > 0 for found in results]) <= 0.86  # type: ignore[operator]
    assert np.median([found.detectable for found in results]) == pytest.approx(size, rel=0.05)  # type: ignore[type-var]


@pytest.mark.parametrize("yes_or_no", [False, True])
def test_draws_that_are_kept_are_those_that_are_drawn(monkeypatch: pytest.MonkeyPatch, yes_or_no: bool) -> None:
    one, other = Ratio([1.0, 0.0, 1.0, 1.0], [1.0] * 4), Ratio([0.0, 0.0, 1.0, 0.0], [1.0] * 4)
    sessions = ["a", "b", "c", "d"]
    for seed in (0, 1, 0):
        kept = paired_interval(one, other, sessions, resamples=500, seed=seed, yes_or_no=yes_or_no)
        with monkeypatch.context() as patch:
            patch.setattr("sdft_cli.intervals._KEPT", 0)
            patch.setattr("sdft_cli.intervals._BLOCK", 4_000)  # all in one block, as those that are kept
            assert paired_interval(one, other, sessions, resamples=500, seed=seed, yes_or_no=yes_or_no) == kept
