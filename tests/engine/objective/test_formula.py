"""Token weights and the plain formula against numbers worked out in plain Python; the loss without `FUSED`."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from sdft_cli.choices import DIVERGENCES  # noqa: E402
from sdft_cli.config import DistillSettings  # noqa: E402
from sdft_cli.engine.models.head import Head  # noqa: E402
from sdft_cli.engine.objective import formula, loss  # noqa: E402
from sdft_cli.engine.objective.formula import loss_range, token_weights  # noqa: E402
from sdft_cli.engine.passes.decode import Rollout  # noqa: E402

P, Q = [0.5, 0.2, 0.2, 0.06, 0.04], [0.1, 0.05, 0.25, 0.2, 0.4]
TOP_3 = {"support": "top_k", "top_k": 3}


def kl(a: list[float], b: list[float]) -> float:
    return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))


def by_hand(divergence: str, p: list[float], q: list[float], beta: float) -> float:
    m = [beta * y + (1 - beta) * x for x, y in zip(p, q, strict=True)]
    both = beta * kl(q, m) + (1 - beta) * kl(p, m)
    return {"reverse_kl": kl(p, q), "forward_kl": kl(q, p), "jsd": both}[divergence]


def test_every_divergence_has_a_name_and_a_formula() -> None:
    assert formula.FORMULAS.keys() == DIVERGENCES.keys()


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize(
    ("support", "p", "q"),
    [
        ({}, P, Q),
        (TOP_3, [0.5, 0.2, 0.2, 0.1], [0.1, 0.05, 0.25, 0.6]),
        ({**TOP_3, "top_k_tail": False}, [5 / 9, 2 / 9, 2 / 9], [0.25, 0.125, 0.625]),
        ({**TOP_3, "top_k_of": "teacher"}, [0.04, 0.2, 0.06, 0.7], [0.4, 0.25, 0.2, 0.15]),
    ],
)
def test_the_loss_worked_out_by_hand(divergence: str, support: dict[str, Any], p: list[float], q: list[float]) -> None:
    """Two rows with weights 0.25 and 2: p against q, and q against itself, which adds nothing."""
    settings = DistillSettings(divergence=divergence, jsd_beta=0.3, kl_temperature=0.5, **support)
    log = torch.tensor([P, Q, Q], dtype=torch.float64).log() * settings.kl_temperature
    head, weights = Head(torch.eye(5, dtype=torch.float64)), torch.tensor([0.25, 2.0], dtype=torch.float64)
    found = formula.plain_loss(log[:2], log[1:], head, weights, settings)
    assert float(found) == pytest.approx(0.25 * by_hand(divergence, p, q, 0.3), abs=1e-12)


@pytest.mark.parametrize("support", [{}, TOP_3, {**TOP_3, "top_k_tail": False}])
def test_a_divergence_without_a_written_gradient_goes_through_autograd(
    support: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its entry in `FUSED`, reverse KL has the same value and gradient, chunk by chunk, masked rows too."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(13, 8, generator=generator) for _ in range(2))
    head, weights = Head(torch.randn(37, 8, generator=generator)), torch.rand(13, generator=generator)
    weights[[0, 7]] = 0
    settings = DistillSettings(chunk_rows=4, kl_temperature=0.7, **support)

    def run() -> tuple[Any, Any, Any]:
        states = student.clone().requires_grad_()
        output = loss.distillation_loss(states, teacher, head, weights, settings)
        return output.loss.detach(), output.per_token, torch.autograd.grad(output.loss, states)[0]

    fused = run()
    monkeypatch.setattr(loss, "FUSED", {})
    for ours, expected in zip(run(), fused, strict=True):
        assert (ours - expected).norm() <= 1e-5 * expected.norm()
    assert not run()[2][[0, 7]].any()


ROLLOUTS = [Rollout([1, 2, 3, 4], True), Rollout([5, 6], False)]


def weights_of(**settings: object) -> list[list[float]]:
    return token_weights(ROLLOUTS, DistillSettings.model_validate(settings))


def test_weights_of_tokens_by_hand() -> None:
    assert weights_of() == [[1 / 6] * 4, [1 / 6] * 2]
    assert weights_of(average="sequences") == [[1 / 8] * 4, [1 / 4] * 2]
    assert weights_of(skip_first_tokens=1) == [[0, 1 / 4, 1 / 4, 1 / 4], [0, 1 / 4]]
    assert weights_of(skip_first_tokens=3) == [[0, 0, 0, 1], []]
    assert weights_of(max_loss_tokens=1) == [[1 / 2], [1 / 2]]
    assert weights_of(max_loss_tokens=2, skip_first_tokens=1) == [[0, 1 / 3, 1 / 3], [0, 1 / 3]]
    assert weights_of(truncated_rollouts="mask") == [[1 / 4] * 4, []]
    assert weights_of(truncated_rollouts="mask", average="sequences") == [[1 / 4] * 4, []]
    assert weights_of(skip_first_tokens=9) == [[], []]


@given(
    st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=6),
    st.integers(0, 14),
    st.none() | st.integers(1, 14),
    st.sampled_from(["keep", "mask"]),
    st.sampled_from(["tokens", "sequences"]),
)
def test_weights_add_up_to_one_or_nothing(
    shapes: list[tuple[int, bool]], skip: int, cap: int | None, truncated: str, average: str
) -> None:
    settings = DistillSettings.model_validate(
        {"skip_first_tokens": skip, "max_loss_tokens": cap, "truncated_rollouts": truncated, "average": average}
    )
    rollouts = [Rollout(list(range(length)), finished) for length, finished in shapes]
    found = token_weights(rollouts, settings)
    total = sum(map(sum, found))
    assert total == pytest.approx(1) or total == 0
    for rollout, share in zip(rollouts, found, strict=True):
        assert len([w for w in share if w]) == len(loss_range(rollout, settings))
        assert not share or share[-1] > 0
