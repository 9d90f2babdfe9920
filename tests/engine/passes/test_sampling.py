"""Tokens are drawn from the distribution that transformers' warpers make, among the few that can be drawn."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper  # noqa: E402

from sdft_cli.engine.passes import decode_steps  # noqa: E402
from sdft_cli.engine.passes.decode import seeded  # noqa: E402
from sdft_cli.engine.passes.decode_steps import Sampling, nucleus  # noqa: E402


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
    with seeded(1):
        drawn = Sampling(0.8, top_p, (), 0).draw(logits.expand(draws, -1))
    shares = torch.bincount(drawn, minlength=6) / draws
    expected = by_transformers(logits[None], 0.8, top_p)[0]
    assert ((shares > 0) <= (expected > 0)).all()
    assert float((shares - expected).abs().max()) < 4 * (0.25 / draws) ** 0.5


def test_greedy_is_the_most_likely_token() -> None:
    assert Sampling(None, 0.5, (), 0).draw(torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])).tolist() == [1, 0]
