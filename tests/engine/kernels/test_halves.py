from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.engine.kernels.halves import AT_ONCE, LARGEST, held_by_half, pack_halves, reads_halves  # noqa: E402
from sdft_cli.engine.kernels.packed import packed_products  # noqa: E402

needs_halves = pytest.mark.skipif(not reads_halves(), reason="this torch has no products with float16 weights")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_float16_holds_what_was_stored_in_16_bits_and_no_more() -> None:
    weight = drawn(70, 33)
    assert held_by_half(weight.bfloat16().float())
    assert held_by_half(weight.half().float())
    assert not held_by_half(weight)
    one_off = weight.bfloat16().float()
    one_off[69, 32] = 1 + 2.0**-12  # between two numbers of float16
    assert not held_by_half(one_off)
    assert held_by_half(torch.zeros(3, 4))
    assert held_by_half(torch.zeros(0, 4))


@pytest.mark.parametrize("beyond", [LARGEST * 2, float("inf"), float("nan")])
def test_what_float16_has_no_number_for_is_not_held(beyond: float) -> None:
    weight = torch.ones(4, 4)
    weight[1, 2] = beyond
    assert not held_by_half(weight)


def test_numbers_near_zero_may_lose_digits_that_the_largest_one_has_not() -> None:
    near = torch.full((2, 8), 2.0**-20 * (1 + 2.0**-7))  # float16 has steps of 2^-24 there
    assert not held_by_half(near)
    near[0, 0] = 1.0
    assert held_by_half(near)


def test_every_part_of_a_large_matrix_is_looked_at() -> None:
    weight = torch.ones(3, AT_ONCE // 2 + 1)
    assert held_by_half(weight)
    weight[2, -1] = 1 + 2.0**-12
    assert not held_by_half(weight)


@needs_halves
@pytest.mark.parametrize("shape", [(576, 192), (49, 577), (3, 1), (1536, 576)])
@pytest.mark.parametrize("rows", [1, 3, 8, 32])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_with_halves_is_the_product(shape: tuple[int, int], rows: int, transposed: bool) -> None:
    weight, x = drawn(*shape).bfloat16().float(), drawn(rows, 1, shape[1], seed=1)
    if transposed:
        weight = weight.T.contiguous().T
    halves = pack_halves([weight])
    assert halves is not None
    product = halves.product(weight)
    assert product is not None
    expected = x.double() @ weight.double().T
    assert product(x).shape == (rows, 1, shape[0])
    assert torch.allclose(product(x).double(), expected, atol=1e-5 * shape[1] ** 0.5)
    weight.zero_()
    assert product(x).abs().sum() > 0  # a copy


@needs_halves
def test_all_weights_are_held_or_none_is_packed() -> None:
    good, bad = drawn(8, 8).half().float(), drawn(8, 8)
    assert pack_halves([good]) is not None
    assert pack_halves([good, bad]) is None


def test_a_torch_without_these_products_packs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdft_cli.engine.kernels.halves.reads_halves", lambda: False)
    assert pack_halves([torch.zeros(2, 2)]) is None


@needs_halves
def test_a_weight_that_stands_in_for_a_packed_one_is_not_taken_for_it() -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.Linear(24, 8, bias=False)).requires_grad_(False)
    for parameter in layers.parameters():
        parameter.copy_(parameter.bfloat16())
    halves = pack_halves([layer.weight for layer in layers])
    assert halves is not None
    x = drawn(4, 16)
    expected = layers(x)
    own = layers[1].weight.data
    with torch.no_grad(), packed_products(layers, 4, halves):
        assert torch.allclose(layers(x), expected, atol=1e-6)
    layers[1].weight.data = 2 * own
    with torch.no_grad(), packed_products(layers, 4, halves):
        assert torch.allclose(layers(x), 2 * expected, atol=1e-5)
        assert halves.product(layers[1].weight) is None
    layers[1].weight.data = own
    assert halves.product(layers[1].weight) is not None
    assert torch.equal(layers(x), expected)
