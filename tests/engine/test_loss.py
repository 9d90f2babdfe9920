"""The chunked loss against independent arithmetic and against autograd of the plain formula."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.engine.loss import chunked_reverse_kl, token_log_likelihood  # noqa: E402

N, H, V = 13, 8, 37


def inputs(seed: int = 0, scale: float = 1.0, rows: int = N) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(rows, H, generator=generator).mul_(scale)
    teacher = student + torch.randn(rows, H, generator=generator)
    return student.requires_grad_(), teacher, torch.randn(V, H, generator=generator)


def plain(
    student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor, weights: torch.Tensor, temperature: float
) -> torch.Tensor:
    log_p = (student @ weight.T / temperature).log_softmax(-1)
    log_q = (teacher @ weight.T / temperature).log_softmax(-1)
    return ((log_p.exp() * (log_p - log_q)).sum(-1) * weights).sum()


def test_a_value_computed_by_hand() -> None:
    # Logits (ln 3, 0) against (0, 0): p = (3/4, 1/4), q = (1/2, 1/2).
    weight = torch.tensor([[1.0], [0.0]])
    student = torch.tensor([[math.log(3)]], requires_grad=True)
    found = chunked_reverse_kl(student, torch.zeros(1, 1), weight, torch.ones(1))
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert found.loss.item() == pytest.approx(kl, abs=1e-7)
    assert found.per_token.tolist() == pytest.approx([kl], abs=1e-7)
    found.loss.backward()
    # dKL/dz_0 = p_0 (log(p_0/q_0) - KL), and z_0 = h.
    assert student.grad is not None
    assert student.grad.item() == pytest.approx(0.75 * (math.log(1.5) - kl), abs=1e-7)


def test_the_direction_is_student_over_teacher() -> None:
    """KL(p||q) is infinite where q is 0 and p is not; here it must be large one way and small the other."""
    weight = torch.eye(2)
    sure, unsure = torch.tensor([[20.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert chunked_reverse_kl(sure, unsure, weight, torch.ones(1)).loss.item() == pytest.approx(math.log(2), abs=1e-5)
    assert chunked_reverse_kl(unsure, sure, weight, torch.ones(1)).loss.item() == pytest.approx(
        10 - math.log(2), abs=1e-4
    )


@pytest.mark.parametrize("chunk", [1, 4, 13, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("masked", [False, True])
def test_value_and_gradient_equal_the_plain_formula(chunk: int, temperature: float, masked: bool) -> None:
    student, teacher, weight = inputs()
    weights = torch.rand(N, generator=torch.Generator().manual_seed(1))
    if masked:
        weights[[0, 3, 4, 12]] = 0.0
    expected = plain(student, teacher, weight, weights, temperature)
    (expected_gradient,) = torch.autograd.grad(expected, student)
    found = chunked_reverse_kl(student, teacher, weight, weights, temperature, chunk)
    (gradient,) = torch.autograd.grad(found.loss, student)
    assert abs(found.loss.item() - expected.item()) <= 1e-5 * abs(expected.item())
    assert (gradient - expected_gradient).norm() <= 1e-5 * expected_gradient.norm()
    if masked:
        assert gradient[[0, 3, 4, 12]].abs().max() == 0
        assert found.per_token[[0, 3, 4, 12]].abs().max() == 0


def test_nearly_one_hot_distributions_keep_their_gradient() -> None:
    """Where p is close to 1, d - sum(p d) cancels in fp32; float64 autograd is the judge."""
    student, teacher, weight = inputs(seed=2, scale=6.0)
    expected = plain(student.double(), teacher.double(), weight.double(), torch.ones(N).double(), 1.0)
    (expected_gradient,) = torch.autograd.grad(expected, student)
    found = chunked_reverse_kl(student, teacher, weight, torch.ones(N))
    (gradient,) = torch.autograd.grad(found.loss, student)
    assert (gradient - expected_gradient).norm() <= 1e-5 * expected_gradient.norm()
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_an_empty_mask_is_exactly_zero_loss_and_zero_gradient() -> None:
    student, teacher, weight = inputs()
    found = chunked_reverse_kl(student, teacher, weight, torch.zeros(N))
    found.loss.backward()
    assert found.loss.item() == 0.0
    assert student.grad is not None
    assert student.grad.abs().max().item() == 0.0
    none = chunked_reverse_kl(student[:0], teacher[:0], weight, torch.zeros(0))
    assert none.loss.item() == 0.0


def test_equal_distributions_have_no_divergence_and_no_gradient() -> None:
    student, _, weight = inputs()
    found = chunked_reverse_kl(student, student.detach().clone(), weight, torch.ones(N))
    found.loss.backward()
    assert found.loss.abs().item() <= 1e-6
    assert student.grad is not None
    assert student.grad.abs().max() <= 1e-6


def test_neither_teacher_nor_head_gets_a_gradient() -> None:
    student, teacher, weight = inputs()
    teacher.requires_grad_()
    weight.requires_grad_()
    chunked_reverse_kl(student, teacher, weight, torch.ones(N)).loss.backward()
    assert teacher.grad is None
    assert weight.grad is None


def test_upstream_gradient_scales_and_shapes_are_checked() -> None:
    student, teacher, weight = inputs()
    (one,) = torch.autograd.grad(chunked_reverse_kl(student, teacher, weight, torch.ones(N)).loss, student)
    (three,) = torch.autograd.grad(chunked_reverse_kl(student, teacher, weight, torch.ones(N)).loss * 3, student)
    assert torch.allclose(three, one * 3)
    with pytest.raises(ValueError, match="shapes do not match"):
        chunked_reverse_kl(student, teacher[:-1], weight, torch.ones(N))


def test_bf16_inputs_are_summed_in_fp32() -> None:
    student, teacher, weight = inputs()
    low = chunked_reverse_kl(
        student.detach().bfloat16().requires_grad_(), teacher.bfloat16(), weight.bfloat16(), torch.ones(N)
    )
    high = plain(student, teacher, weight, torch.ones(N), 1.0)
    assert low.loss.dtype == torch.float32
    assert low.loss.item() == pytest.approx(high.item(), rel=0.05)


def test_log_likelihood_equals_cross_entropy() -> None:
    student, _, weight = inputs()
    targets = torch.arange(N) % V
    expected = -torch.nn.functional.cross_entropy(student @ weight.T, targets, reduction="none")
    assert torch.allclose(token_log_likelihood(student, weight, targets, 4), expected, atol=1e-6)
