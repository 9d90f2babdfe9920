"""Tokens are drawn from the distribution that transformers' warpers make, among the few that can be drawn."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from itertools import accumulate
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper  # noqa: E402

from sdft_cli.engine.passes import decode_steps  # noqa: E402
from sdft_cli.engine.passes.decode_steps import Sampling, at_places, nucleus, places_of, row_seeds  # noqa: E402


def by_transformers(logits: Any, temperature: float, top_p: float) -> Any:
    """The distribution (B, V) that `generate` draws from."""
    logits = TemperatureLogitsWarper(temperature)(None, logits)
    return TopPLogitsWarper(top_p)(None, logits).softmax(-1)


def spread(shares: Any, words: Any, vocabulary: int) -> Any:
    """The distribution (B, V) of what `nucleus` returned."""
    return torch.zeros(len(shares), vocabulary).scatter_(-1, words, shares / shares.sum(-1, keepdim=True))


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 400),
    st.floats(0.01, 20.0),
    st.floats(0.05, 0.999),
    st.floats(0.2, 3.0),
    st.integers(0, 10**6),
    st.sampled_from([1, 2, 7, 64]),
)
def test_the_nucleus_is_that_of_transformers(
    vocabulary: int, sharp: float, top_p: float, temperature: float, seed: int, first: int
) -> None:
    """In fp64 and without ties; sharp and flat distributions; found among the first words or after all others."""
    logits = sharp * torch.randn(3, vocabulary, generator=torch.Generator().manual_seed(seed)).double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_steps, "FIRST", first)
        shares, words = nucleus((logits / temperature).softmax(-1), top_p)
    expected = by_transformers(logits, temperature, top_p)
    found = torch.zeros_like(expected).scatter_(-1, words, shares / shares.sum(-1, keepdim=True))
    assert torch.equal(found > 0, expected > 0)
    assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize(("equal", "top_p", "kept"), [(8, 0.49, 4), (8, 0.51, 5), (1000, 0.9501, 951), (3, 0.01, 1)])
def test_of_words_that_are_equally_likely_as_many_are_kept(equal: int, top_p: float, kept: int) -> None:
    """Which ones is anybody's choice: theirs are others."""
    logits = torch.zeros(2, equal).double()
    shares, words = nucleus(logits.softmax(-1), top_p)
    assert ((shares > 0).sum(-1) == kept).all()
    assert ((by_transformers(logits, 1.0, top_p) > 0).sum(-1) == kept).all()
    assert all(len(set(row.tolist())) == len(row) for row in words)


@pytest.mark.parametrize("top_p", [0.6, 1.0])
def test_tokens_are_drawn_as_often_as_they_are_likely(top_p: float) -> None:
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -6.0])
    draws = 40_000
    places = torch.from_numpy(places_of(row_seeds(1, range(draws)), 1))[:, 0]
    drawn = Sampling(0.8, top_p, (), 0).draw(logits.expand(draws, -1), places)
    shares = torch.bincount(drawn, minlength=6) / draws
    expected = by_transformers(logits[None], 0.8, top_p)[0]
    assert ((shares > 0) <= (expected > 0)).all()
    assert float((shares - expected).abs().max()) < 4 * (0.25 / draws) ** 0.5


def test_greedy_is_the_most_likely_token() -> None:
    assert Sampling(None, 0.5, (), 0).draw(torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])).tolist() == [1, 0]


def test_places_are_those_of_splitmix64() -> None:
    """The outputs for seed 1234567 that Rosetta Code lists ("Pseudo-random numbers/Splitmix64")."""
    listed = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert places_of([1234567], 5).tolist() == [[(word >> 11) / 2**53 for word in listed]]
    assert places_of([2**64 - 1], 2).shape == (1, 2)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5), st.integers(1, 40), st.integers(1, 40))
def test_a_place_depends_on_its_own_seed_and_token_only(seeds: list[int], count: int, more: int) -> None:
    together = places_of(seeds, count + more)
    assert ((together >= 0) & (together < 1)).all()
    for row, seed in enumerate(seeds):
        assert places_of([seed], count)[0].tolist() == together[row, :count].tolist()


def test_places_are_even() -> None:
    """Of 4,000 rows whose names are 0, 1, ...: 20 bins for each token, and for the product of two tokens' halves."""
    found = torch.from_numpy(places_of(row_seeds(3, range(4000)), 4))
    for column in found.T:
        counts = torch.histc(column, 20, 0, 1)
        assert float(((counts - 200) ** 2 / 200).sum()) < 44  # chi-squared, 19 degrees: 1 in 1000
    halves = (found > 0.5).double()
    assert abs(float((halves[:, 0] == halves[:, 1]).double().mean()) - 0.5) < 4 * 0.5 / 4000**0.5


def test_seeds_of_rows_are_of_the_run_and_the_name() -> None:
    expected = [int(hashlib.sha256(text).hexdigest()[:16], 16) for text in (b"7/0", b"7/1", b"7/some record")]
    assert row_seeds(7, [0, 1, "some record"]) == expected
    assert row_seeds(8, [0]) != row_seeds(7, [0])


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any),
    st.one_of(st.floats(0, 1, exclude_max=True), st.just(1 - 2**-53)),
)
def test_the_outcome_at_a_place_by_exact_arithmetic(weights: list[int], place: float) -> None:
    """The first whose sum of weights passes the place: in fractions, which round nothing."""
    target = Fraction(place) * sum(weights)
    sums = list(accumulate(weights))
    expected = next(i for i, total in enumerate(sums) if total > target)
    found = int(at_places(torch.tensor([weights], dtype=torch.float32), torch.tensor([place], dtype=torch.float64)))
    assert weights[found] > 0
    near = min(abs(target - total) for total in [0, *sums]) < Fraction(1, 10**12)
    assert found == expected or near


def test_words_that_are_nearly_as_likely_stand_in_the_order_of_their_ids() -> None:
    """Rounding that swaps two words of a nucleus moves no other word's place, and theirs by no more than it is."""
    near = torch.tensor([[0.0, 2.0, 2.0 + 1e-6, -9.0], [0.0, 2.0 + 1e-6, 2.0, -9.0]])
    for place in (0.02, 0.2, 0.45, 0.6, 0.99):
        one, other = Sampling(1.0, 0.97, (), 0).draw(near, torch.tensor([place, place], dtype=torch.float64)).tolist()
        assert one == other


def test_a_row_samples_the_same_alone_and_in_any_company() -> None:
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(2))
    places = torch.from_numpy(places_of(row_seeds(5, range(6)), 3))
    for top_p in (0.9, 1.0):
        sampling = Sampling(0.7, top_p, (), 0)
        together = sampling.draw(logits, places[:, 1])
        alone = [int(sampling.draw(logits[i : i + 1], places[i : i + 1, 1])) for i in range(6)]
        assert together.tolist() == alone
