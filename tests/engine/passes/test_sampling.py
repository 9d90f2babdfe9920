"""Tokens are drawn from the distribution that transformers' warpers make, among the few that can be drawn."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper  # noqa: E402

from sdft_cli.engine.passes import decode_steps  # noqa: E402
from sdft_cli.engine.passes.decode_steps import (  # noqa: E402
    Sampling,
    first_to_arrive,
    nucleus,
    row_seeds,
    splitmix,
    uniforms,
)

CPU = torch.device("cpu")
MASK = 2**64 - 1


def by_hand(state: int, count: int) -> list[int]:
    """The first outputs of SplitMix64 as it is defined, one after the other, in Python's integers."""
    found = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
        found.append(z ^ (z >> 31))
    return found


def unsigned(words: Any) -> list[int]:
    return [word & MASK for word in words.tolist()]


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


@pytest.mark.parametrize("sharp", [0.0, 0.5, 2.0, 4.0, 30.0])
def test_as_many_words_are_sorted_as_are_needed_and_no_more(sharp: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 1% more than a nucleus has, and the words that are as likely as its last one."""
    shares = (sharp * torch.randn(4, 30_000, generator=torch.Generator().manual_seed(0))).softmax(-1)
    sizes: list[int] = []
    topk = torch.Tensor.topk
    monkeypatch.setattr(torch.Tensor, "topk", lambda self, count: sizes.append(count) or topk(self, count))
    found, _ = nucleus(shares, 0.9)
    most = int((found > 0).sum(-1).max())
    assert len(sizes) == (1 if most < decode_steps.FIRST else 2)
    assert sizes[-1] <= (30_000 if sharp == 0 else max(decode_steps.FIRST, 1.01 * most + 2))


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
    sampling = Sampling(0.8, top_p, (), 0, row_seeds(1, range(draws)))
    drawn = sampling.draw(logits.expand(draws, -1), sampling.places(1, CPU)[:, 0])
    shares = torch.bincount(drawn, minlength=6) / draws
    expected = by_transformers(logits[None], 0.8, top_p)[0]
    assert ((shares > 0) <= (expected > 0)).all()
    assert float((shares - expected).abs().max()) < 4 * (0.25 / draws) ** 0.5


def test_greedy_is_the_most_likely_token() -> None:
    assert Sampling(None, 0.5, (), 0).draw(torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])).tolist() == [1, 0]


def test_splitmix_by_hand_is_that_of_others() -> None:
    """The outputs for seed 1234567 that Rosetta Code lists ("Pseudo-random numbers/Splitmix64")."""
    listed = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert by_hand(1234567, 5) == listed


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5), st.integers(1, 40), st.integers(1, 40))
def test_a_place_depends_on_its_own_seed_and_token_only(seeds: list[int], count: int, more: int) -> None:
    together = Sampling(1.0, 1.0, (), 0, seeds).places(count + more, CPU)
    for row, seed in enumerate(seeds):
        assert unsigned(together[row]) == by_hand(seed, count + more)
        alone = Sampling(1.0, 1.0, (), 0, [seed]).places(count, CPU)
        assert alone[0].tolist() == together[row, :count].tolist()
    assert Sampling(None, 1.0, (), 0, ()).places(count, CPU) is None


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
def test_uniform_numbers_are_the_upper_bits(words: list[int]) -> None:
    signed = torch.tensor([word - 2**64 if word >= 2**63 else word for word in words])
    found = uniforms(signed).tolist()
    assert found == [(2 * (word >> 12) + 1) / 2**53 for word in words]
    assert all(0 < number < 1 for number in found)


def test_uniform_numbers_are_even_and_their_neighbours_independent() -> None:
    """Chi-squared of 20 bins (19 degrees of freedom: 44 is passed once in 1000 times), and pairs of halves."""
    states = torch.tensor([seed % 2**63 for seed in row_seeds(3, range(4000))])
    found = uniforms(splitmix(states[:, None], torch.arange(4)))
    for column in found.T:
        counts = torch.histc(column, 20, 0, 1)
        assert float(((counts - 200) ** 2 / 200).sum()) < 44
    halves = found > 0.5
    for a, b in ((halves[:, 0], halves[:, 1]), (halves[:-1, 0], halves[1:, 0])):
        assert abs(float((a == b).double().mean()) - 0.5) < 4 * 0.5 / 4000**0.5


def test_seeds_of_rows_are_of_the_run_and_the_name() -> None:
    expected = [int(hashlib.sha256(text).hexdigest()[:16], 16) for text in (b"7/0", b"7/1", b"7/some record")]
    assert row_seeds(7, [0, 1, "some record"]) == expected
    assert row_seeds(8, [0]) != row_seeds(7, [0])


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any), st.integers(0, 2**63 - 1), st.integers(0, 99))
def test_the_word_that_arrives_first_by_plain_arithmetic(weights: list[int], place: int, first: int) -> None:
    ids = range(first, first + len(weights))
    outputs = by_hand(place, first + len(weights))
    times = {
        i: -math.log((2 * (outputs[word] >> 12) + 1) / 2**53) / weight
        for i, (word, weight) in enumerate(zip(ids, weights, strict=True))
        if weight
    }
    shares = torch.tensor([weights], dtype=torch.float32)
    found = int(first_to_arrive(shares, torch.tensor([list(ids)]), torch.tensor([place])))
    assert found == min(times, key=lambda i: times[i])


def test_rounding_moves_as_many_draws_as_it_moves_shares() -> None:
    """10,000 rows of 300 words, whose logits differ by 1e-3: a draw differs with a chance of about that."""
    logits = torch.randn(10_000, 300, generator=torch.Generator().manual_seed(4))
    other = logits + 1e-3 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(5))
    sampling = Sampling(1.0, 0.95, (), 0, row_seeds(6, range(len(logits))))
    places = sampling.places(1, CPU)[:, 0]
    assert 0 < int((sampling.draw(logits, places) != sampling.draw(other, places)).sum()) < 30


def test_a_row_samples_the_same_alone_and_in_any_company() -> None:
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(2))
    for top_p in (0.9, 1.0):
        sampling = Sampling(0.7, top_p, (), 0, row_seeds(5, range(6)))
        places = sampling.places(3, CPU)
        together = sampling.draw(logits, places[:, 1])
        alone = [int(sampling.draw(logits[i : i + 1], places[i : i + 1, 1])) for i in range(6)]
        assert together.tolist() == alone
