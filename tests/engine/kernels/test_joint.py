from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from sdft_cli.engine.kernels.halves import pack_halves, reads_halves  # noqa: E402
from sdft_cli.engine.kernels.joint import Joint, reading_together  # noqa: E402

WIDTHS = (5, 2, 3)


class Counted:
    """A product that counts how often it is computed."""

    def __init__(self) -> None:
        self.weight = torch.randn(sum(WIDTHS), 4, generator=torch.Generator().manual_seed(0))
        self.times = 0

    def __call__(self, x: Any) -> Any:
        self.times += 1
        return x @ self.weight.T


def expected(product: Counted, index: int, x: Any) -> Any:
    start = sum(WIDTHS[:index])
    return x @ product.weight[start : start + WIDTHS[index]].T


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=30))
@settings(deadline=None, max_examples=100)
def test_each_layer_has_its_columns_whatever_asks_in_whatever_order(asked: list[tuple[int, int]]) -> None:
    product = Counted()
    joint = Joint(product, WIDTHS)
    inputs = [torch.randn(2, 1, 4, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    with torch.no_grad():
        for index, which in asked:
            found = joint.part(index)(inputs[which])
            assert torch.allclose(found, expected(product, index, inputs[which]), atol=1e-6)
            found.add_(100)  # what is handed out may be written to


def test_layers_that_read_one_tensor_share_one_product() -> None:
    product = Counted()
    joint = Joint(product, WIDTHS)
    with torch.no_grad():
        for round_ in (1, 2):
            x = torch.randn(2, 4)
            for index in (1, 0, 2):
                joint.part(index)(x)
            assert product.times == round_


@pytest.mark.parametrize("inference", [False, True])
def test_a_tensor_that_was_written_to_is_another_one(inference: bool) -> None:
    product = Counted()
    joint = Joint(product, WIDTHS)
    with torch.no_grad():
        x = torch.ones(2, 4)
        joint.part(0)(x)
        x.mul_(3)
        assert torch.allclose(joint.part(1)(x), expected(product, 1, x), atol=1e-6)
    assert product.times == 2
    with torch.inference_mode(inference):  # there tensors have no version
        x = torch.ones(2, 4)
        for index in range(3):
            assert torch.allclose(joint.part(index)(x), expected(product, index, x), atol=1e-6)
    assert product.times == 3


class Reader(torch.nn.Module):
    """Layers of which a and b read the input, c and d read a's output; e runs twice; f never; g by keyword."""

    def __init__(self) -> None:
        super().__init__()
        for name in "abcdefg":
            setattr(self, name, torch.nn.Linear(4, 4, bias=False))

    def forward(self, x: Any) -> Any:
        y = self.a(x)
        z = self.b(x) + self.e(x) + self.e(x) + self.g(input=x)
        return self.c(y) + self.d(y) + self.a.weight.sum() + z


def test_layers_that_a_pass_gives_the_same_tensor_are_found() -> None:
    model = Reader()
    layers = list(model.children())
    found = reading_together(layers, lambda: model(torch.ones(2, 4)))
    assert found == [[model.a, model.b], [model.c, model.d]]
    assert not any(layer._forward_pre_hooks for layer in layers)
    assert reading_together([model.a, model.c], lambda: model(torch.ones(2, 4))) == []


def test_hooks_are_gone_after_an_error() -> None:
    model = Reader()
    with pytest.raises(RuntimeError):
        reading_together([model.a], lambda: model(torch.ones(2, 5)))
    assert not model.a._forward_pre_hooks


@pytest.mark.skipif(not reads_halves(), reason="this torch has no products with float16 weights")
def test_weights_are_packed_together_where_they_are_named_once() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, c, d = (torch.randn(n, 16, generator=generator).half().float() for n in (24, 8, 40, 8))
    halves = pack_halves([a, b, c, d], [[a, b], [b, c], [d, d]])
    assert halves is not None
    found = [halves.find(w) for w in (a, b, c, d)]
    assert all(found)
    assert found[0].joint is found[1].joint is not None  # type: ignore[union-attr]
    assert [half.joint for half in found[2:]] == [None, None]  # type: ignore[union-attr]
    x = torch.randn(3, 1, 16, generator=generator)
    for weight in (a, b, c, d):
        product = halves.product(weight)
        assert product is not None
        assert torch.allclose(product(x), x @ weight.T, atol=1e-4)
