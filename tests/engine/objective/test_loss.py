"""The loss against numbers worked out in plain Python, and its gradient against autograd of the plain formulas."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from sdft_cli.config import DistillSettings  # noqa: E402
from sdft_cli.engine.models.head import Head  # noqa: E402
from sdft_cli.engine.objective import loss as loss_module  # noqa: E402
from sdft_cli.engine.objective.formula import plain_loss  # noqa: E402
from sdft_cli.engine.objective.loss import (  # noqa: E402
    cross_entropy_loss,
    distillation_loss,
    first_choices,
    token_log_likelihood,
)

N, H, V = 13, 8, 37
DIVERGENCES = ("reverse_kl", "forward_kl", "jsd", "mixed_kl", "entropy_aware_kl")
IN_TRL = DIVERGENCES[:3]
MASKED = [0, 3, 4, 12]


def configure(**values: Any) -> DistillSettings:
    return DistillSettings(**{"chunk_rows": 4, "jsd_beta": 0.3, "kl_mix": 0.3, "entropy_threshold": 1.0, **values})


def inputs(seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(N, H, generator=generator).mul_(scale)
    teacher = student + torch.randn(N, H, generator=generator)
    weight = torch.randn(V, H, generator=generator)
    return student.to(dtype).requires_grad_(), teacher.to(dtype), weight.to(dtype)


def token_weights(masked: bool = True) -> Tensor:
    weights = torch.rand(N, generator=torch.Generator().manual_seed(1)) + 0.1
    if masked:
        weights[MASKED] = 0.0
    return weights


def plain_outcomes(student: Tensor, teacher: Tensor, config: DistillSettings) -> tuple[Tensor, Tensor]:
    """Probabilities of the outcomes, on full logits, with 1 - sum for the tail."""
    p, q = student.softmax(-1), teacher.softmax(-1)
    if config.support == "full" or config.top_k >= p.shape[-1]:
        return p, q
    chosen = (p if config.top_k_of == "student" else q).argsort(-1, descending=True)[:, : config.top_k]
    p, q = p.gather(-1, chosen), q.gather(-1, chosen)
    if config.top_k_tail:
        return tuple(torch.cat([x, 1 - x.sum(-1, keepdim=True)], -1) for x in (p, q))  # type: ignore[return-value]
    return p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)


def plain(student: Tensor, teacher: Tensor, weight: Tensor, config: DistillSettings) -> Tensor:
    """The divergence per token, differentiable, in the inputs' precision."""
    t = config.kl_temperature
    p, q = plain_outcomes(student @ weight.T / t, teacher @ weight.T / t, config)
    reverse, forward = (p * (p.log() - q.log())).sum(-1), (q * (q.log() - p.log())).sum(-1)
    if config.divergence == "reverse_kl":
        return reverse
    if config.divergence == "forward_kl":
        return forward
    if config.divergence == "mixed_kl":
        return config.kl_mix * forward + (1 - config.kl_mix) * reverse
    if config.divergence == "entropy_aware_kl":
        return torch.where(-(q * q.log()).sum(-1) > config.entropy_threshold, reverse + forward, reverse)
    b = config.jsd_beta
    m = b * q + (1 - b) * p
    return (b * q * (q.log() - m.log()) + (1 - b) * p * (p.log() - m.log())).sum(-1)


def gradient_of(value: Tensor, states: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(value, states)
    return found


def on_logits(student: Tensor, teacher: Tensor, config: DistillSettings) -> Any:
    """The loss with an identity as the head, so that hidden states are logits."""
    return distillation_loss(student, teacher, Head(torch.eye(student.shape[1])), torch.ones(len(student)), config)


# --- by hand: logits ln 3, 0 (p = 3/4, 1/4) against 0, 0 (q = 1/2, 1/2)


def kl(a: list[float], b: list[float]) -> float:
    return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))


def jsd(p: list[float], q: list[float], beta: float) -> float:
    m = [beta * y + (1 - beta) * x for x, y in zip(p, q, strict=True)]
    return beta * kl(q, m) + (1 - beta) * kl(p, m)


LOG_Q_M = 0.5 * math.log(0.5 / 0.675) + 0.5 * math.log(0.5 / 0.325)
LOG_P_M = 0.75 * math.log(0.75 / 0.675) + 0.25 * math.log(0.25 / 0.325)


@pytest.mark.parametrize(
    ("divergence", "value", "slope"),
    [
        # p_0 (log(p_0/q_0) - KL)
        ("reverse_kl", 0.13081203594113697, 0.75 * (math.log(1.5) - 0.13081203594113697)),
        ("forward_kl", 0.14384103622589042, 0.75 - 0.5),
        # M = (0.675, 0.325): 0.3 * 0.0653392 + 0.7 * 0.0134293, slope 0.7 p_0 p_1 log(p_0 M_1 / (p_1 M_0))
        ("jsd", 0.3 * LOG_Q_M + 0.7 * LOG_P_M, 0.7 * 0.1875 * math.log(0.75 * 0.325 / (0.25 * 0.675))),
        (
            "mixed_kl",
            0.3 * 0.14384103622589042 + 0.7 * 0.13081203594113697,
            0.3 * 0.25 + 0.7 * 0.75 * (math.log(1.5) - 0.13081203594113697),
        ),
        # H(q) = ln 2 = 0.693: above 0.69, not above 0.7
        (
            "entropy_aware_kl 0.69",
            0.14384103622589042 + 0.13081203594113697,
            0.25 + 0.75 * (math.log(1.5) - 0.13081203594113697),
        ),
        ("entropy_aware_kl 0.7", 0.13081203594113697, 0.75 * (math.log(1.5) - 0.13081203594113697)),
    ],
)
def test_a_value_and_slope_computed_by_hand(divergence: str, value: float, slope: float) -> None:
    student = torch.tensor([[math.log(3), 0.0]], requires_grad=True)
    name, _, threshold = divergence.partition(" ")
    config = configure(divergence=name, entropy_threshold=float(threshold or 0))
    found = on_logits(student, torch.zeros(1, 2), config)
    assert found.loss.item() == pytest.approx(value, abs=1e-7)
    assert found.per_token.tolist() == pytest.approx([value], abs=1e-7)
    assert gradient_of(found.loss, student).tolist()[0] == pytest.approx([slope, -slope], abs=1e-7)


def test_the_direction_is_in_the_name() -> None:
    """A sure student against an unsure teacher: KL(student||teacher) = ln 2, KL(teacher||student) = 10 - ln 2."""
    sure, unsure = torch.tensor([[20.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    large, small = pytest.approx(10 - math.log(2), abs=1e-5), pytest.approx(math.log(2), abs=1e-6)
    assert on_logits(sure, unsure, configure(divergence="reverse_kl")).loss.item() == small
    assert on_logits(sure, unsure, configure(divergence="forward_kl")).loss.item() == large
    assert on_logits(unsure, sure, configure(divergence="reverse_kl")).loss.item() == large


P, Q = [0.5, 0.2, 0.2, 0.06, 0.04], [0.1, 0.05, 0.25, 0.2, 0.4]
"""Student and teacher over five words: the student's first three are words 0 to 2, the teacher's 4, 2, 3."""


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize(
    ("support", "p", "q"),
    [
        ({"support": "full"}, P, Q),
        ({"support": "top_k", "top_k": 3}, [0.5, 0.2, 0.2, 0.1], [0.1, 0.05, 0.25, 0.6]),
        ({"support": "top_k", "top_k": 3, "top_k_tail": False}, [5 / 9, 2 / 9, 2 / 9], [0.25, 0.125, 0.625]),
        ({"support": "top_k", "top_k": 3, "top_k_of": "teacher"}, [0.2, 0.06, 0.04, 0.7], [0.25, 0.2, 0.4, 0.15]),
        (
            {"support": "top_k", "top_k": 3, "top_k_of": "teacher", "top_k_tail": False},
            [20 / 30, 6 / 30, 4 / 30],
            [25 / 85, 20 / 85, 40 / 85],
        ),
    ],
)
def test_values_over_outcomes_worked_out_by_hand(
    divergence: str, support: dict[str, Any], p: list[float], q: list[float]
) -> None:
    both = 0.3 * kl(q, p) + 0.7 * kl(p, q)
    unsure = -sum(x * math.log(x) for x in q) > 1
    expected = {
        "reverse_kl": kl(p, q),
        "forward_kl": kl(q, p),
        "jsd": jsd(p, q, 0.3),
        "mixed_kl": both,
        "entropy_aware_kl": kl(p, q) + unsure * kl(q, p),
    }[divergence]
    found = on_logits(torch.tensor([P]).log(), torch.tensor([Q]).log(), configure(divergence=divergence, **support))
    assert found.loss.item() == pytest.approx(expected, abs=1e-6)


# --- against autograd of the plain formulas


SUPPORTS: list[dict[str, Any]] = [
    {"support": "full"},
    *(
        {"support": "top_k", "top_k": 5, "top_k_of": of, "top_k_tail": tail}
        for of, tail in product(("student", "teacher"), (True, False))
    ),
]


def name(value: Any) -> str:
    return "-".join(str(v) for v in value.values()) if isinstance(value, dict) else str(value)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("support", SUPPORTS, ids=name)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1, 4, 13, 100])
def test_value_and_gradient_equal_the_plain_formula(
    divergence: str, support: dict[str, Any], temperature: float, chunk: int
) -> None:
    student, teacher, weight = inputs()
    for masked in (False, True):
        weights = token_weights(masked)
        config = configure(divergence=divergence, kl_temperature=temperature, chunk_rows=chunk, **support)
        expected = plain(student.double(), teacher.double(), weight.double(), config)
        found = distillation_loss(student, teacher, Head(weight), weights, config)
        in_product = plain_loss(student.double(), teacher.double(), Head(weight.double()), weights.double(), config)
        kept = weights > 0
        assert torch.allclose(found.per_token[kept], expected[kept].float(), rtol=1e-5, atol=1e-6)
        total = (expected * weights).sum()
        assert found.loss.item() == pytest.approx(total.item(), rel=1e-5)
        assert in_product.item() == pytest.approx(total.item(), rel=1e-9)
        judge, gradient = gradient_of(total, student), gradient_of(found.loss, student)
        assert torch.allclose(gradient_of(in_product, student), judge, rtol=1e-6)
        assert (gradient - judge).abs().max() <= 1e-5 * judge.abs().max()
        assert not gradient[~kept].any()
        assert not found.per_token[~kept].any()


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("support", SUPPORTS, ids=name)
def test_nearly_one_hot_distributions_keep_their_gradient(divergence: str, support: dict[str, Any]) -> None:
    """Row by row, also where both are nearly 1 at the same word and fp32 would cancel; float64 is the judge."""
    generator = torch.Generator().manual_seed(2)
    student = torch.randn(N, V, generator=generator)
    teacher = student + torch.randn(N, V, generator=generator)
    mode = torch.arange(N)
    student[mode, mode] += torch.linspace(4, 18, N)
    teacher[mode, mode] += torch.linspace(18, 4, N)
    student.requires_grad_()
    config = configure(divergence=divergence, **support)
    expected = plain(student.double(), teacher.double(), torch.eye(V).double(), config)
    judge = gradient_of(expected.sum(), student).double()
    found = on_logits(student, teacher, config)
    error = (gradient_of(found.loss, student) - judge).norm(dim=-1) / judge.norm(dim=-1)
    assert error.max() <= 2e-5
    assert torch.allclose(found.per_token, expected.float(), rtol=1e-5, atol=2e-7)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("of", ["student", "teacher"])
def test_top_k_of_all_words_is_the_full_vocabulary(divergence: str, tail: bool, of: str) -> None:
    student, teacher, weight = inputs()
    full = distillation_loss(student, teacher, Head(weight), torch.ones(N), configure(divergence=divergence))
    for k in (V, V + 1, 10 * V):
        config = configure(divergence=divergence, support="top_k", top_k=k, top_k_tail=tail, top_k_of=of)
        found = distillation_loss(student, teacher, Head(weight), torch.ones(N), config)
        assert torch.equal(found.per_token, full.per_token)
        assert torch.equal(gradient_of(found.loss, student), gradient_of(full.loss, student))
        full = distillation_loss(student, teacher, Head(weight), torch.ones(N), configure(divergence=divergence))
    # One word in the tail is that word: the same outcomes as the full vocabulary, computed the other way.
    config = configure(divergence=divergence, support="top_k", top_k=V - 1, top_k_of=of)
    found = distillation_loss(student, teacher, Head(weight), torch.ones(N), config)
    assert (found.per_token - full.per_token).abs().max() <= 1e-6
    judge = gradient_of(full.loss, student)
    assert (gradient_of(found.loss, student) - judge).abs().max() <= 1e-5 * judge.abs().max()


def test_without_the_tail_no_other_word_has_a_gradient() -> None:
    student = torch.tensor([P]).log().requires_grad_()
    found = on_logits(student, torch.tensor([Q]).log(), configure(support="top_k", top_k=3, top_k_tail=False))
    gradient = gradient_of(found.loss, student)[0]
    assert gradient[3:].tolist() == [0.0, 0.0]
    assert gradient[:3].abs().min() > 0.01


@pytest.mark.slow  # importing trl takes seconds
@pytest.mark.parametrize("divergence", IN_TRL)
@pytest.mark.parametrize("tail", [True, False])
def test_trl_computes_the_same_where_it_is_installed(divergence: str, tail: bool) -> None:
    trl = pytest.importorskip("trl.experimental.sdft.loss_utils")
    student, teacher, weight = inputs()
    alpha = {"reverse_kl": 1.0, "forward_kl": 0.0, "jsd": 0.3}[divergence]
    logits = student @ weight.T, teacher @ weight.T
    full = distillation_loss(student, teacher, Head(weight), torch.ones(N), configure(divergence=divergence)).per_token
    theirs = trl.compute_full_logit_self_distillation_loss(*logits, distillation_alpha=alpha)
    assert torch.allclose(full, theirs, rtol=1e-5, atol=1e-6)
    config = configure(divergence=divergence, support="top_k", top_k=5, top_k_tail=tail)
    few = distillation_loss(student, teacher, Head(weight), torch.ones(N), config).per_token
    theirs = trl.compute_topk_self_distillation_loss(
        *logits, distillation_topk=5, distillation_alpha=alpha, distillation_add_tail=tail
    )
    assert torch.allclose(few, theirs, rtol=1e-4, atol=1e-5)


# --- extremes

EXTREME = [
    ([0.0, 0.0, 0.0], [1e4, 0.0, -1e4]),
    ([1e4, 0.0, -1e4], [-1e4, 0.0, 1e4]),
    ([1e4, 0.0, 0.0], [1e4, 0.0, 0.0]),
    ([1e4, 1e4, 0.0], [1e4, 1e4 - 1, 0.0]),
    ([-1e4, -1e4, -1e4], [3.0, 2.0, 1.0]),
    ([90.0, 0.0, 0.0], [0.0, 90.0, 0.0]),
]


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("support", SUPPORTS, ids=name)
@pytest.mark.parametrize(("student", "teacher"), EXTREME)
def test_extreme_logits_stay_finite_and_not_negative(
    divergence: str, support: dict[str, Any], student: list[float], teacher: list[float]
) -> None:
    config = configure(divergence=divergence, **{**support, "top_k": 2})
    z = torch.tensor([student], requires_grad=True)
    found = on_logits(z, torch.tensor([teacher]), config)
    assert math.isfinite(found.loss.item())
    assert found.loss.item() >= -1e-6
    gradient = gradient_of(found.loss, z)
    assert torch.isfinite(gradient).all()
    assert gradient.sum().abs() <= 1e-6 * max(1.0, float(gradient.abs().max()))


def test_extreme_values_are_right() -> None:
    """A one-hot teacher 10,000 nats away, and opposite one-hot distributions."""
    flat, sure, other = torch.zeros(1, 3), torch.tensor([[1e4, 0.0, 0.0]]), torch.tensor([[0.0, 1e4, 0.0]])
    assert on_logits(flat, sure, configure()).loss.item() == pytest.approx(2 / 3 * 1e4 - math.log(3), rel=1e-6)
    forward = configure(divergence="forward_kl")
    assert on_logits(flat, sure, forward).loss.item() == pytest.approx(math.log(3), rel=1e-6)
    entropy = -0.3 * math.log(0.3) - 0.7 * math.log(0.7)
    assert on_logits(other, sure, configure(divergence="jsd")).loss.item() == pytest.approx(entropy, rel=1e-6)


def test_a_word_far_down_the_tail_is_not_lost() -> None:
    """The tail's probability is about e^-30, which 1 - sum would round to 0."""
    student = torch.tensor([[0.0, -30.0, -31.0]])
    teacher = torch.tensor([[0.0, -2.0, -31.0]])
    p, q = [1.0, math.exp(-30) + math.exp(-31)], [1 / (1 + math.exp(-2)), math.exp(-2) / (1 + math.exp(-2))]
    config = configure(divergence="forward_kl", support="top_k", top_k=1)
    assert on_logits(student, teacher, config).loss.item() == pytest.approx(kl(q, p), rel=1e-6)


ROWS = st.integers(1, 4).flatmap(
    lambda rows: st.integers(2, 9).flatmap(
        lambda words: st.lists(
            st.lists(st.floats(-60, 60, width=32), min_size=words, max_size=words), min_size=2 * rows, max_size=2 * rows
        )
    )
)


@settings(deadline=None, max_examples=80)
@given(ROWS, st.sampled_from(SUPPORTS), st.floats(0.05, 0.95), st.integers(1, 8))
def test_properties_of_divergences(rows: list[list[float]], support: dict[str, Any], beta: float, k: int) -> None:
    student, teacher = torch.tensor(rows).chunk(2)
    options = {**support, "top_k": k, "jsd_beta": beta}
    found = {d: on_logits(student, teacher, configure(divergence=d, **options)).per_token for d in DIVERGENCES}
    for values in found.values():
        assert torch.isfinite(values).all()
        assert values.min() >= -1e-6
    entropy = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    assert found["jsd"].max() <= entropy + 1e-6
    # Roles swapped, with the support of the same one of the two.
    other = {"student": "teacher", "teacher": "student"}[options.get("top_k_of", "student")]
    swapped = configure(divergence="reverse_kl", **{**options, "top_k_of": other})
    again = on_logits(teacher, student, swapped).per_token
    assert torch.allclose(found["forward_kl"], again, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(ROWS, st.sampled_from(SUPPORTS), st.sampled_from(DIVERGENCES), st.integers(-64, 64))
def test_a_shift_of_a_rows_logits_changes_nothing(
    rows: list[list[float]], support: dict[str, Any], divergence: str, shift: int
) -> None:
    student, teacher = torch.tensor(rows).mul(4).round().div(4).chunk(2)  # quarters: a shift rounds nothing
    config = configure(divergence=divergence, **{**support, "top_k": 3})
    before = on_logits(student, teacher, config).per_token
    assert torch.allclose(on_logits(student + shift, teacher, config).per_token, before, rtol=1e-5, atol=1e-6)
    assert torch.allclose(on_logits(student, teacher - shift, config).per_token, before, rtol=1e-5, atol=1e-6)


def test_a_large_flat_vocabulary_does_not_go_negative() -> None:
    """Sums over many words of equal size are where fp32 loses most."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(200_000, 2, generator=generator).mul_(0.1)
    student = torch.randn(6, 2, generator=generator)
    teacher = student + 1e-5 * torch.randn(6, 2, generator=generator)
    for divergence in DIVERGENCES:
        values = distillation_loss(
            student, teacher, Head(weight), torch.ones(6), configure(divergence=divergence)
        ).per_token
        assert values.min() >= -1e-6
        assert values.max() <= 1e-6


# --- rows, gradients, types


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_an_empty_mask_is_exactly_zero_loss_and_zero_gradient(divergence: str) -> None:
    student, teacher, weight = inputs()
    found = distillation_loss(student, teacher, Head(weight), torch.zeros(N), configure(divergence=divergence))
    found.loss.backward()
    assert found.loss.item() == 0.0
    assert student.grad is not None
    assert not student.grad.any()
    none = distillation_loss(student[:0], teacher[:0], Head(weight), torch.zeros(0), configure(divergence=divergence))
    assert none.loss.item() == 0.0
    assert none.per_token.shape == (0,)


def test_rows_of_weight_zero_are_not_computed() -> None:
    """They may hold anything, NaN too."""
    student, teacher, weight = inputs()
    with torch.no_grad():
        student[MASKED] = torch.nan
        teacher[MASKED] = torch.nan
    for found in (
        distillation_loss(student, teacher, Head(weight), token_weights(), configure()),
        cross_entropy_loss(student, Head(weight), torch.arange(N), token_weights(), 4),
    ):
        assert math.isfinite(found.loss.item())
        assert not found.per_token[MASKED].any()
        gradient = gradient_of(found.loss, student)
        assert torch.isfinite(gradient).all()
        assert not gradient[MASKED].any()


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("support", SUPPORTS, ids=name)
def test_equal_distributions_have_no_divergence_and_no_gradient(divergence: str, support: dict[str, Any]) -> None:
    student, _, weight = inputs()
    config = configure(divergence=divergence, **support)
    found = distillation_loss(student, student.detach().clone(), Head(weight), torch.ones(N), config)
    assert found.per_token.abs().max().item() <= 2e-7
    assert gradient_of(found.loss, student).abs().max() <= 1e-6


def test_only_the_student_gets_a_gradient_and_inputs_are_not_written() -> None:
    student, teacher, weight = inputs()
    teacher.requires_grad_()
    weight.requires_grad_()
    before = [x.detach().clone() for x in (student, teacher, weight)]
    found = distillation_loss(student, teacher, Head(weight), torch.ones(N), configure(chunk_rows=N))
    assert not found.per_token.requires_grad
    found.loss.backward()
    assert teacher.grad is None
    assert weight.grad is None
    assert all(torch.equal(a, b) for a, b in zip((student, teacher, weight), before, strict=True))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("support", SUPPORTS, ids=name)
def test_without_a_gradient_the_values_are_the_same_and_no_gradient_is_computed(
    divergence: str, support: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher, weight = inputs()
    config = configure(divergence=divergence, **support)
    expected = distillation_loss(student, teacher, Head(weight), token_weights(), config)

    def refuse(*_: Any) -> None:
        raise AssertionError("a gradient was computed")

    monkeypatch.setattr(Head, "into_hidden", refuse)
    monkeypatch.setattr(loss_module, "_through_softmax_", refuse)
    found = [distillation_loss(student.detach(), teacher, Head(weight), token_weights(), config)]
    with torch.no_grad():
        found.append(distillation_loss(student, teacher, Head(weight), token_weights(), config))
    for output in found:
        assert not output.loss.requires_grad
        assert torch.equal(output.per_token, expected.per_token)
        assert torch.equal(output.loss, expected.loss)


def test_upstream_gradient_scales_and_shapes_are_checked() -> None:
    student, teacher, weight = inputs()
    one = gradient_of(distillation_loss(student, teacher, Head(weight), torch.ones(N), configure()).loss, student)
    three = gradient_of(distillation_loss(student, teacher, Head(weight), torch.ones(N), configure()).loss * 3, student)
    assert torch.allclose(three, one * 3)
    with pytest.raises(ValueError, match="shapes do not match"):
        distillation_loss(student, teacher[:-1], Head(weight), torch.ones(N), configure())
    with pytest.raises(ValueError, match="shapes do not match"):
        cross_entropy_loss(student, Head(weight), torch.arange(N - 1), torch.ones(N))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_bf16_inputs_are_summed_in_fp32(divergence: str) -> None:
    student, teacher, weight = inputs(dtype=torch.bfloat16)
    config = configure(divergence=divergence)
    low = distillation_loss(student, teacher, Head(weight), torch.ones(N), config)
    wide = student.detach().float().requires_grad_()
    high = distillation_loss(wide, teacher.float(), Head(weight.float()), torch.ones(N), config)
    assert low.loss.dtype == torch.float32
    assert low.loss.item() == pytest.approx(high.loss.item(), rel=0.05)
    gradient, judge = gradient_of(low.loss, student), gradient_of(high.loss, wide)
    assert gradient.dtype == torch.bfloat16
    assert (gradient - judge).norm() <= 0.05 * judge.norm()


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("support", SUPPORTS, ids=name)
def test_rows_that_go_through_a_divergence_together_change_nothing(
    divergence: str, support: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher, weight = inputs()
    config = configure(divergence=divergence, chunk_rows=5, **support)
    found = []
    for rows in (1, 2, 100):
        monkeypatch.setattr(loss_module, "LOGITS_PER_BLOCK", rows * V)
        output = distillation_loss(student, teacher, Head(weight), token_weights(), config)
        found.append((output.per_token, gradient_of(output.loss, student)))
    for values, gradient in found[1:]:
        torch.testing.assert_close(values, found[0][0], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-5, atol=1e-7)


# --- cross-entropy


def test_cross_entropy_by_hand() -> None:
    states = torch.tensor([[math.log(3), 0.0]], requires_grad=True)
    found = cross_entropy_loss(states, Head(torch.eye(2)), torch.tensor([1]), torch.tensor([2.0]))
    assert found.per_token.item() == pytest.approx(math.log(4), abs=1e-6)
    assert found.loss.item() == pytest.approx(2 * math.log(4), abs=1e-6)
    assert gradient_of(found.loss, states).tolist()[0] == pytest.approx([1.5, -1.5], abs=1e-6)


@pytest.mark.parametrize("chunk", [1, 4, 13, 100])
@pytest.mark.parametrize("masked", [False, True])
def test_cross_entropy_equals_torch(chunk: int, masked: bool) -> None:
    student, _, weight = inputs(scale=3.0)
    targets, weights = torch.arange(N) * 5 % V, token_weights(masked)
    each = torch.nn.functional.cross_entropy(student.double() @ weight.double().T, targets, reduction="none")
    found = cross_entropy_loss(student, Head(weight), targets, weights, chunk)
    kept = weights > 0
    assert torch.allclose(found.per_token[kept], each[kept].float(), rtol=1e-5, atol=1e-6)
    assert not found.per_token[~kept].any()
    judge = gradient_of((each * weights).sum(), student)
    gradient = gradient_of(found.loss, student)
    assert (gradient - judge).abs().max() <= 1e-5 * judge.abs().max()
    assert not gradient[~kept].any()
    assert torch.allclose(
        token_log_likelihood(student, Head(weight), targets, chunk), -each.float(), rtol=1e-5, atol=1e-6
    )


def test_cross_entropy_of_a_sure_student_keeps_its_gradient() -> None:
    """p - 1 at the target cancels in fp32; row by row against float64."""
    states = torch.eye(N, V).mul(torch.linspace(5, 18, N).unsqueeze(-1)).requires_grad_()
    targets = torch.arange(N)
    judge = gradient_of(torch.nn.functional.cross_entropy(states.double(), targets, reduction="sum"), states)
    gradient = gradient_of(cross_entropy_loss(states, Head(torch.eye(V)), targets, torch.ones(N)).loss, states)
    assert ((gradient - judge).norm(dim=-1) / judge.norm(dim=-1)).max() <= 1e-5


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_first_choices_are_the_largest_logits_however_rows_are_cut(softcap: float | None) -> None:
    student, _, weight = inputs()
    bias = torch.linspace(-3, 3, V)
    expected = [max(range(V), key=row.__getitem__) for row in (student.detach() @ weight.T + bias).tolist()]
    for rows in (1, 4, 100):
        assert first_choices(student, Head(weight, bias, 0.5, softcap), rows).tolist() == expected
    assert first_choices(student[:0], Head(weight)).tolist() == []
