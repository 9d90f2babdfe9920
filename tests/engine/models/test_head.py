"""The head is the model's own: values and gradients in chunks against autograd, and families against themselves."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.choices import DIVERGENCES  # noqa: E402
from sdft_cli.config import DistillSettings  # noqa: E402
from sdft_cli.engine.models import head as module  # noqa: E402
from sdft_cli.engine.models.backend_transformers import PlainModel, TransformersBackend  # noqa: E402
from sdft_cli.engine.models.head import Head, head_of  # noqa: E402
from sdft_cli.engine.objective.formula import plain_loss  # noqa: E402
from sdft_cli.engine.objective.loss import cross_entropy_loss, distillation_loss, token_log_likelihood  # noqa: E402
from sdft_cli.engine.passes.executors import answer_states  # noqa: E402
from sdft_cli.errors import UsageError  # noqa: E402
from tests.engine.models.families import SETTINGS, WORDS, make_model  # noqa: E402

N, H, V = 11, 8, 37
HEADS: dict[str, dict[str, Any]] = {
    "scale": {"scale": 0.3},
    "cap": {"softcap": 1.5},
    "bias": {"bias": True},
    "all": {"scale": 2.5, "softcap": 4.0, "bias": True},
}
TOP_5 = {"support": "top_k", "top_k": 5}
SUPPORTS: tuple[dict[str, Any], ...] = ({}, TOP_5, {**TOP_5, "top_k_tail": False}, {**TOP_5, "top_k_of": "teacher"})


def made(kind: str, dtype: Any = torch.float64) -> tuple[Any, Any, Head]:
    """Return states of student and teacher (N, H) and a head, whose logits are about as large as its cap."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(N, H, generator=generator) for _ in range(2))
    weight, bias = torch.randn(V, H, generator=generator), torch.randn(V, generator=generator)
    options = {**HEADS[kind]}
    own = bias.to(dtype) if options.pop("bias", False) else None
    return student.to(dtype), teacher.to(dtype), Head(weight.to(dtype), own, **options)


def by_hand(hidden: Any, head: Head) -> Any:
    """Logits worked out one after the other in fp64."""
    z = hidden.double() @ head.weight.double().T
    z = head.scale * (z if head.bias is None else z + head.bias.double())
    return z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)


@pytest.mark.parametrize("kind", HEADS)
def test_logits_with_and_without_a_buffer(kind: str) -> None:
    student, _, head = made(kind, torch.float32)
    expected = by_hand(student, head)
    buffer = torch.empty(N, V)
    assert head.logits(student, buffer) is buffer
    for found in (head.logits(student), buffer):
        assert (found - expected).abs().max() < 1e-5


def test_a_plain_head_is_the_matrix_bit_for_bit() -> None:
    student, _, head = made("scale", torch.float32)
    product = student @ head.weight.T
    assert torch.equal(Head(head.weight).logits(student), product)
    assert torch.equal(Head(head.weight).logits(student, torch.empty(N, V)), product)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["plain", *HEADS])
@pytest.mark.parametrize("words", [1, 16, 2048])
def test_logits_of_16_bit_factors_are_not_rounded(
    words: int, kind: str, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against fp64, in blocks of words that do and do not divide the vocabulary; with gradient, in a buffer, alone."""
    monkeypatch.setattr(module, "WORDS", words)
    student, _, head = made("bias" if kind == "plain" else kind, dtype)
    head = head.plain() if kind == "plain" else head
    wide = student.double().requires_grad_()
    expected = by_hand(wide, head)
    (slopes,) = torch.autograd.grad(expected.sin().sum(), wide)
    leaf = student.float().requires_grad_()
    found = head.logits(leaf)
    (gradient,) = torch.autograd.grad(found.sin().sum(), leaf)
    buffer = torch.full((N, V), torch.nan)
    for logits in (found, head.logits(student), head.logits(student, buffer), buffer):
        assert logits.dtype == torch.float32
        assert (logits - expected).abs().max() < 3e-6
    rounded = expected.to(dtype).float()
    assert (rounded - expected).abs().max() > 2e-4  # what a product in the weight's type would lose
    assert (gradient - slopes).norm() < 2 * torch.finfo(dtype).eps * slopes.norm()  # rounded where it enters the states


@pytest.mark.parametrize("words", [5, 2048])
def test_a_small_divergence_does_not_drown_in_rounding(words: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and gradient for 16-bit states and head, at a KL that rounded logits get wrong."""
    monkeypatch.setattr(module, "WORDS", words)
    generator = torch.Generator().manual_seed(0)
    student, weight = (torch.randn(n, 64, generator=generator).bfloat16() for n in (N, V))
    teacher = (student.float() + 2e-3 * torch.randn(N, 64, generator=generator)).bfloat16()
    leaf, ones = student.clone().requires_grad_(), torch.full((N,), 1 / N)
    found = distillation_loss(leaf, teacher, Head(weight), ones, DistillSettings(chunk_rows=4))
    (gradient,) = torch.autograd.grad(found.loss, leaf)
    wide = student.double().requires_grad_()
    p, q = (x @ weight.double().T for x in (wide, teacher.double()))
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    value = (p.exp() * (p - q)).sum() / N
    (expected,) = torch.autograd.grad(value, wide)
    assert found.loss.item() == pytest.approx(value.item(), rel=5e-3)
    assert (gradient - expected).norm() < 5e-3 * expected.norm()
    rounded = [(x @ weight.T).double().log_softmax(-1) for x in (student, teacher)]
    coarse = (rounded[0].exp() * (rounded[0] - rounded[1])).sum() / N
    assert abs(coarse - value) > 0.5 * value  # the planted fault: products rounded to bfloat16


def test_on_a_gpu_torch_sums_16_bit_factors_in_fp32() -> None:
    """The call that a GPU makes, on tensors without data: torch has it for no CPU."""
    head = Head(torch.empty(V, H, dtype=torch.bfloat16, device="meta"))
    buffer = torch.empty(N, V, device="meta")
    hidden = torch.empty(N, H, dtype=torch.bfloat16, device="meta")
    assert head.logits(hidden, buffer) is buffer
    for found, width in ((head.logits(hidden), V), (head.into_hidden(buffer), H)):
        assert (found.dtype, tuple(found.shape)) == (torch.float32, (N, width))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("support", SUPPORTS, ids=str)
def test_value_and_gradient_in_chunks_are_those_of_autograd(
    divergence: str, kind: str, support: dict[str, Any]
) -> None:
    """In fp32, against the plain formula in fp64; and the plain formula against logits worked out here."""
    student, teacher, head = made(kind)
    settings = DistillSettings(divergence=divergence, chunk_rows=4, kl_temperature=0.7, **support)
    weights = torch.rand(N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights[3] = 0
    wide = student.clone().requires_grad_()
    value = plain_loss(wide, teacher, head, weights, settings)
    identity = Head(torch.eye(V, dtype=torch.float64))
    logits = by_hand(wide, head), by_hand(teacher, head)
    assert torch.allclose(value, plain_loss(*logits, identity, weights, settings), rtol=1e-12)
    (expected,) = torch.autograd.grad(value, wide)
    own = student.float().requires_grad_()
    few = Head(head.weight.float(), None if head.bias is None else head.bias.float(), head.scale, head.softcap)
    found = distillation_loss(own, teacher.float(), few, weights.float(), settings)
    (gradient,) = torch.autograd.grad(found.loss, own)
    assert found.loss.item() == pytest.approx(value.item(), rel=2e-5)
    assert (gradient - expected).abs().max() < 2e-5 * expected.abs().max()
    assert not gradient[3].any()


@pytest.mark.parametrize("kind", HEADS)
def test_cross_entropy_and_its_gradient(kind: str) -> None:
    student, _, head = made(kind, torch.float32)
    targets = torch.arange(N) * 3
    wide = student.double().requires_grad_()
    each = -by_hand(wide, head).log_softmax(-1)[torch.arange(N), targets]
    (expected,) = torch.autograd.grad(each.mean(), wide)
    own = student.clone().requires_grad_()
    found = cross_entropy_loss(own, head, targets, torch.full((N,), 1 / N), 4)
    (gradient,) = torch.autograd.grad(found.loss, own)
    assert (found.per_token - each).abs().max() < 1e-5
    assert (gradient - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (token_log_likelihood(student, head, targets, 4) + each).abs().max() < 1e-5


def test_a_head_without_a_cap_has_no_slope() -> None:
    with pytest.raises(ValueError, match="no slope"):
        Head(torch.eye(2)).slope(torch.eye(2))


EXPECTED = {
    "granite": (1 / 8, None),
    "cohere": (0.0625, None),
    "cohere2": (0.25, None),
    "gemma2": (1.0, 2.0),
    "gemma3_text": (1.0, 2.0),
    "falcon_h1": (0.3, None),
    "minicpm3": (0.25, None),
    "hyperclovax": (0.3, None),
    "nanochat": (1.0, 2.0),
}
BIASED = {"phi", "gptj"}


@pytest.mark.parametrize("family", SETTINGS)
def test_likelihood_and_divergence_are_those_of_the_models_own_logits(family: str) -> None:
    model = make_model(family)
    backend = TransformersBackend(PlainModel(model).eval(), torch.device("cpu"))
    head = backend.head
    assert (head.scale, head.softcap) == EXPECTED.get(family, (1.0, None))
    assert (head.bias is not None) == (family in BIASED)
    generator = torch.Generator().manual_seed(1)
    student, teacher, answer = (torch.randint(3, WORDS, (n,), generator=generator).tolist() for n in (9, 14, 12))
    states = [answer_states(backend, [prompt], [answer], 2) for prompt in (student, teacher)]
    with torch.no_grad():
        p, q = (
            model(input_ids=torch.tensor([[*x, *answer]])).logits[0, len(x) - 1 : -1].double().log_softmax(-1)
            for x in (student, teacher)
        )
    targets = torch.tensor(answer)
    assert (token_log_likelihood(states[0], head, targets) - p.gather(-1, targets[:, None])[:, 0]).abs().max() < 1e-5
    found = distillation_loss(*states, head, torch.ones(len(answer)), DistillSettings()).per_token
    assert (found - (p.exp() * (p - q)).sum(-1)).abs().max() < 1e-5
    plain = token_log_likelihood(states[0], Head(head.weight), targets)
    special = family in EXPECTED or family in BIASED
    assert special == bool((plain - p.gather(-1, targets[:, None])[:, 0]).abs().max() > 1e-3)


@pytest.mark.parametrize("value", [0, -1.0, True, "8"])
def test_a_scale_that_is_no_number_above_zero_is_refused(value: Any) -> None:
    model = make_model("llama")
    model.config.logits_scaling = value
    with pytest.raises(UsageError, match=r"logits_scaling of llama is .*correct its config.json"):
        head_of(model)


def test_a_model_without_an_output_head_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no output head"):
        head_of(make_model("llama").model)
