from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.engine.kernels import packed  # noqa: E402
from sdft_cli.engine.kernels.packed import packable, packed_product, packed_products, packs  # noqa: E402

pytestmark = pytest.mark.skipif(not packs(), reason="this torch has no packed products")


@pytest.mark.parametrize("shape", [(576, 192), (49, 577), (3, 1), (1536, 576)])
@pytest.mark.parametrize("rows", [1, 3, 8, 32])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("mkl", [False, True])
def test_a_packed_product_is_the_product(
    shape: tuple[int, int], rows: int, bias: bool, mkl: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not {True: packed._by_mkl, False: packed._by_onednn}[mkl]():
        pytest.skip("this torch has none of it")
    monkeypatch.setattr(packed, "_by_mkl", lambda: mkl)
    generator = torch.Generator().manual_seed(0)
    weight, x, b = (torch.randn(s, generator=generator) for s in (shape, (rows, 1, shape[1]), (shape[0],)))
    found = packed_product(weight, rows, b if bias else None)(x)
    expected = x.double() @ weight.double().T + (b.double() if bias else 0.0)
    assert found.shape == (rows, 1, shape[0])
    assert torch.allclose(found.double(), expected, atol=1e-5 * shape[1] ** 0.5)
    product = packed_product(weight, rows)
    weight.zero_()
    assert product(x).abs().sum() > 0  # a copy


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.ReLU(), torch.nn.Linear(24, 8, bias=False))


def test_a_model_computes_the_same_and_has_its_own_products_back() -> None:
    layers = model()
    with torch.no_grad():
        inputs = {rows: torch.randn(rows, 16) for rows in (4, 5)}
        expected = {rows: layers(x) for rows, x in inputs.items()}
        with packed_products(layers, 4):
            assert [("forward" in vars(layer)) for layer in layers] == [True, False, True]
            layers[0].weight.mul_(2.0)  # inputs of 4 rows see the weights as they were
            assert torch.allclose(layers(inputs[4]), expected[4], atol=1e-6)
            assert not torch.allclose(layers(inputs[5]), expected[5], atol=1e-6)
            layers[0].weight.mul_(0.5)
            assert torch.equal(layers(inputs[5]), expected[5])
        assert all("forward" not in vars(layer) for layer in layers)
        assert torch.equal(layers(inputs[4]), expected[4])


def test_a_gradient_is_that_of_the_plain_product() -> None:
    layers = model()
    x = torch.randn(4, 16)
    expected = torch.autograd.grad(layers(x).sum(), layers.parameters())
    with packed_products(layers, 4):
        found = torch.autograd.grad(layers(x).sum(), layers.parameters())
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_what_is_no_plain_layer_in_fp32_is_left_alone() -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(4, 4).bfloat16(), torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    layers[1].forward = layers[1].forward  # somebody else's

    class Own(torch.nn.Linear):
        pass

    layers.append(Own(4, 4))
    assert packable(layers) == [layers[2]]


def test_an_error_while_packing_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = model()
    layers[2].weight.data = layers[2].weight.data[:0]
    calls: list[int] = []

    def failing(*_: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no memory")
        return lambda x: x

    monkeypatch.setattr("sdft_cli.engine.kernels.packed.packed_product", failing)
    with pytest.raises(RuntimeError, match="no memory"), packed_products(layers, 4):
        pass
    assert all("forward" not in vars(layer) for layer in layers)
