"""Token weights and the plain formula against numbers worked out in plain Python; the loss without `FUSED`."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from sdft_cli.choices import DIVERGENCES, TOKEN_WEIGHTS  # noqa: E402
from sdft_cli.config import DistillSettings  # noqa: E402
from sdft_cli.engine.models.head import Head  # noqa: E402
from sdft_cli.engine.objective import formula, loss  # noqa: E402
from sdft_cli.engine.objective.formula import loss_range, token_weights  # noqa: E402
from sdft_cli.engine.objective.weights import WEIGHTINGS, Answers  # noqa: E402
from sdft_cli.engine.passes.decode import Rollout  # noqa: E402

P, Q = [0.5, 0.2, 0.2, 0.06, 0.04], [0.1, 0.05, 0.25, 0.2, 0.4]
TOP_3 = {"support": "top_k", "top_k": 3}


def kl(a: list[float], b: list[float]) -> float:
    return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))


def by_hand(divergence: str, p: list[float], q: list[float], beta: float) -> float:
    m = [beta * y + (1 - beta) * x for x, y in zip(p, q, strict=True)]
    both = beta * kl(q, m) + (1 - beta) * kl(p, m)
    unsure = -sum(y * math.log(y) for y in q) > 0.8
    return {
        "reverse_kl": kl(p, q),
        "forward_kl": kl(q, p),
        "jsd": both,
        "mixed_kl": 0.3 * kl(q, p) + 0.7 * kl(p, q),
        "entropy_aware_kl": kl(p, q) + unsure * kl(q, p),
    }[divergence]


def test_every_divergence_and_weighting_has_a_name_and_a_formula() -> None:
    assert formula.FORMULAS.keys() == DIVERGENCES.keys()
    assert WEIGHTINGS.keys() == TOKEN_WEIGHTS.keys()


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
    settings = DistillSettings(divergence=divergence, jsd_beta=0.3, kl_mix=0.3, kl_temperature=0.5, **support)
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


# --- the clip


def log_of(*rows: list[float]) -> Any:
    return torch.tensor(rows, dtype=torch.float64).log()


@pytest.mark.parametrize(
    ("divergence", "terms"),
    [
        ("reverse_kl", [0.75 * math.log(1.5), -0.25 * math.log(2)]),
        ("forward_kl", [-0.5 * math.log(1.5), 0.5 * math.log(2)]),
        ("mixed_kl", [0.5 * math.log(1.5), -0.1 * math.log(2)]),
    ],
)
def test_the_clip_cuts_the_terms_of_outcomes_by_hand(divergence: str, terms: list[float]) -> None:
    """p = 3/4, 1/4 and q = 1/2, 1/2; of the mix (weights 0.2 and 0.8), 0.8 * 0.75 - 0.2 * 0.5 = 0.5 and -0.1."""
    log_p, log_q = log_of([0.75, 0.25]), log_of([0.5, 0.5])
    for clip in (0.1, 0.2, 1.0):
        settings = DistillSettings.model_validate({"divergence": divergence, "kl_mix": 0.2, "token_clip": clip})
        found = formula.divergence(log_p, log_q, settings)
        assert found.item() == pytest.approx(sum(min(term, clip) for term in terms), abs=1e-12)


def test_a_clipped_outcome_has_no_gradient_of_its_own() -> None:
    """Forward KL, the second of three outcomes clipped, which has 0.8 of the teacher: p_o (1 - 0.8) - q_o elsewhere."""
    p, q = [0.5, 0.1, 0.4], [0.1, 0.8, 0.1]
    z = log_of(p).requires_grad_()
    settings = DistillSettings(divergence="forward_kl", token_clip=0.05)
    formula.divergence(z.log_softmax(-1), log_of(q), settings).sum().backward()
    assert z.grad[0].tolist() == pytest.approx([0.5 * 0.2 - 0.1, 0.1 * 0.2, 0.4 * 0.2 - 0.1], abs=1e-12)


@given(st.lists(st.floats(-6, 6), min_size=8, max_size=8), st.floats(0.01, 3), st.sampled_from(sorted(DIVERGENCES)))
def test_a_clip_never_raises_the_loss_and_a_high_one_changes_nothing(
    logits: list[float], clip: float, divergence: str
) -> None:
    p, q = torch.tensor(logits, dtype=torch.float64).view(2, 4).log_softmax(-1).split(1)

    def of(token_clip: float | None) -> float:
        settings = DistillSettings.model_validate({"divergence": divergence, "token_clip": token_clip})
        return formula.divergence(p, q, settings).item()

    assert of(clip) <= min(of(None), 4 * clip) + 1e-12
    assert of(1e6) == of(None)


@pytest.mark.parametrize("divergence", sorted(DIVERGENCES))
@pytest.mark.parametrize("support", [{}, TOP_3])
@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("weighting", ["none", "prefix"])
def test_clip_and_weights_in_chunks_are_those_of_the_plain_formula(
    divergence: str, support: dict[str, Any], clip: float | None, weighting: str
) -> None:
    """fp32 in chunks that cut trajectories, against float64; rows without weight hold NaN."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(13, 8, generator=generator) for _ in range(2))
    weight, tokens = torch.randn(37, 8, generator=generator), torch.arange(13) * 5
    weights = torch.rand(13, generator=generator)
    weights[[0, 7]] = 0
    answers = Answers(tokens % 37, [5, 6, 2], [True, True, False])
    values = {"divergence": divergence, "token_clip": clip, "token_weights": weighting, "entropy_threshold": 2.0}
    settings = DistillSettings.model_validate({**values, **support, "chunk_rows": 4, "kl_temperature": 0.7})
    wide = student.double().requires_grad_()
    plain = formula.plain_loss(wide, teacher.double(), Head(weight.double()), weights.double(), settings, answers)
    (judge,) = torch.autograd.grad(plain, wide)
    student[[0, 7]] = torch.nan
    found = loss.distillation_loss(student.requires_grad_(), teacher, Head(weight), weights, settings, answers)
    (gradient,) = torch.autograd.grad(found.loss, student)
    assert found.loss.item() == pytest.approx(plain.item(), rel=2e-5)
    assert (gradient - judge).abs().max() <= 2e-5 * judge.abs().max()
    assert judge.abs().max() > 0
    # Values alone are the same.
    alone = loss.distillation_loss(student.detach(), teacher, Head(weight), weights, settings, answers)
    assert torch.equal(alone.loss, found.loss.detach())


def test_weights_that_need_the_answers_say_so() -> None:
    states, settings = torch.randn(2, 4), DistillSettings(token_weights="prefix")
    with pytest.raises(ValueError, match="needs the answers"):
        loss.distillation_loss(states, states, Head(torch.eye(4)), torch.ones(2), settings)


@pytest.mark.parametrize("divergence", sorted(DIVERGENCES))
def test_autograd_holds_no_more_buffers_than_are_counted(divergence: str) -> None:
    from torch.profiler import ProfilerActivity, profile

    settings = DistillSettings.model_validate({"divergence": divergence, "token_clip": 0.05})
    student, teacher = torch.randn(4, 20_000), torch.randn(4, 20_000)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        loss._by_autograd(student, teacher, [], settings, True)
    held, most = 0, 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    assert 2 < most / (4 * student.numel()) <= loss.AUTOGRAD_BUFFERS + 0.1
