from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.engine.kernels.halves import reads_halves  # noqa: E402
from sdft_cli.engine.models.adapters import lora_layers, weights  # noqa: E402
from sdft_cli.engine.models.updates import updates_beside  # noqa: E402
from sdft_cli.engine.passes.start_check import base_in_halves  # noqa: E402
from tests.engine.trees import as_stored, make  # noqa: E402

pytestmark = pytest.mark.skipif(not reads_halves(), reason="this torch has no products with float16 weights")


def opened(kind: str = "qwen2") -> tuple[Any, Any]:
    """A tiny model with biases and an adapter that does something, and its base in float16."""
    backend = make(kind)
    as_stored(backend)
    backend.model.eval()
    halves = base_in_halves(backend)
    assert halves is not None
    return backend, halves


def by_hand(layer: Any, x: Any) -> Any:
    """y = x W^T + b + s (x A^T) B^T in fp64."""
    base, name = layer.get_base_layer(), layer.active_adapters[0]
    a, b = (getattr(layer, factor)[name].weight.double() for factor in ("lora_A", "lora_B"))
    y = x.double() @ base.weight.double().T + layer.scaling[name] * (x.double() @ a.T @ b.T)
    return y if base.bias is None else y + base.bias.double()


def test_every_adapted_layer_computes_base_and_update() -> None:
    backend, halves = opened()
    layers = lora_layers(backend.model).values()
    biased = 0
    with torch.no_grad(), updates_beside(backend.trunk, 3, halves) as inside:
        assert all("forward" in vars(layer) for layer in layers)
        assert {layer.get_base_layer() for layer in layers} <= inside
        for layer in layers:
            x = torch.randn(3, 1, layer.in_features)
            assert torch.allclose(layer(x).double(), by_hand(layer, x), atol=1e-5)
            x = torch.randn(5, 1, layer.in_features)  # not so many rows: peft's own
            assert torch.allclose(layer(x).double(), by_hand(layer, x), atol=1e-5)
            biased += layer.get_base_layer().bias is not None
    assert biased
    assert not any("forward" in vars(layer) for layer in layers)


def test_an_update_is_the_adapter_as_it_was_when_it_was_packed_and_new_each_time() -> None:
    backend, halves = opened()
    layer = next(iter(lora_layers(backend.model).values()))
    x = torch.randn(2, 1, layer.in_features)
    for factor in (1.0, 3.0):
        layer.lora_B["default"].weight.data.mul_(factor)
        with torch.no_grad(), updates_beside(backend.trunk, 2, halves):
            assert torch.allclose(layer(x).double(), by_hand(layer, x), atol=1e-5)


def test_a_gradient_goes_through_peft() -> None:
    backend, halves = opened()
    layer = next(iter(lora_layers(backend.model).values()))
    factor = layer.lora_B["default"].weight.requires_grad_(True)
    x = torch.randn(2, 1, layer.in_features)
    expected = torch.autograd.grad(layer(x).sum(), factor)[0]
    with updates_beside(backend.trunk, 2, halves):
        assert torch.equal(torch.autograd.grad(layer(x).sum(), factor)[0], expected)


@pytest.mark.parametrize("case", ["base", "merged"])
def test_an_adapter_that_is_off_is_left_alone(case: Any) -> None:
    backend, halves = opened()
    with weights(backend.model, case), updates_beside(backend.trunk, 2, halves) as inside:
        assert not inside
        assert not any("forward" in vars(layer) for layer in lora_layers(backend.model).values())


def test_other_kinds_of_adapters_run_as_ever() -> None:
    backend, halves = opened()
    layers = list(lora_layers(backend.model).values())
    layers[0].lora_variant["default"] = object()
    layers[1].lora_dropout["default"] = torch.nn.Dropout(0.5)
    layers[1].train()
    layers[2].forward = layers[2].forward
    layers[3].lora_A["default"].weight.data = layers[3].lora_A["default"].weight.data.bfloat16()
    layers[4].get_base_layer().weight.data = layers[4].get_base_layer().weight.data.clone()
    with updates_beside(backend.trunk, 2, halves) as inside:
        for layer in layers:
            taken = layer not in layers[:5]
            assert (layer.get_base_layer() in inside) is taken
            assert ("forward" in vars(layer)) is (taken or layer is layers[2])


def test_without_halves_nothing_happens() -> None:
    backend, _ = opened()
    with updates_beside(backend.trunk, 2, None) as inside:
        assert inside == set()


@pytest.mark.parametrize(
    ("kind", "names"), [("qwen2", ("q_proj", "k_proj", "v_proj")), ("hybrid", ("gate_proj", "up_proj"))]
)
def test_layers_that_read_one_tensor_share_their_products_and_have_their_own_results(
    kind: str, names: tuple[str, ...]
) -> None:
    backend, halves = opened(kind)
    layers = [layer for name, layer in lora_layers(backend.model).items() if name.endswith(names)][: len(names)]
    joints = {halves.find(layer.get_base_layer().weight).joint for layer in layers}
    assert len(joints) == 1
    assert None not in joints
    x = torch.randn(3, 1, layers[0].in_features)
    with torch.no_grad(), updates_beside(backend.trunk, 3, halves):
        found = [layer(x) for layer in layers]  # all before any is looked at: none writes into another's
        for layer, y in zip(layers, found, strict=True):
            assert torch.allclose(y.double(), by_hand(layer, x), atol=1e-5)
            assert torch.allclose(layer(x).double(), by_hand(layer, x), atol=1e-5)
