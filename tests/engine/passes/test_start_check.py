from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.engine.models.backend import Backend  # noqa: E402
from sdft_cli.engine.passes import decode  # noqa: E402
from sdft_cli.engine.passes.start_check import check_decoding, check_reach, decoding_gaps  # noqa: E402
from sdft_cli.errors import MachineError  # noqa: E402
from tests.engine.prepared import adapted, state_of  # noqa: E402


@pytest.fixture
def backend(tiny_model: Path) -> Backend:
    return adapted(tiny_model)


def test_a_sound_model_passes_and_is_left_as_it_was(backend: Backend) -> None:
    before = state_of(backend)
    assert check_decoding(backend) is None
    assert check_reach(backend) is None
    assert backend.left_pads
    gaps = decoding_gaps(backend, [[5, 9, 41], [7, 8, 30, 12, 4]])
    assert len(gaps) == 6
    assert float(gaps.max()) < 1e-4
    after = state_of(backend)
    assert all(torch.equal(after["tensors"][name], tensor) for name, tensor in before["tensors"].items())
    assert after["training"] == before["training"]
    assert all(p.grad is None for p in backend.parameters())


def test_a_model_that_reads_padding_decodes_prompts_of_one_length(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    pad = decode.left_padded

    def unmasked(rows: Any, pad_id: int) -> Any:
        ids, mask = pad(rows, pad_id)
        return ids, torch.ones_like(mask)

    monkeypatch.setattr(decode, "left_padded", unmasked)
    said = check_decoding(backend)
    assert said == "Decoding: only prompts of one length together, since llama does not leave padding out"
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12]]
    together = decode.generate(backend, prompts, 4, (), 0)
    assert together == [decode.generate(backend, [prompt], 4, (), 0)[0] for prompt in prompts]


def test_a_model_that_decodes_something_else_is_refused(backend: Backend) -> None:
    own = backend.base.lm_head.forward
    backend.base.lm_head.forward = lambda states: 2 * own(states)
    with pytest.raises(MachineError, match="llama decodes another distribution than its forward pass gives"):
        check_decoding(backend)


def test_layers_without_gradient_are_told(backend: Backend) -> None:
    layer = backend.base.model.layers[0].mlp
    layer.forward = lambda states: 0 * states
    said = check_reach(backend)
    assert said is not None
    assert "no gradient reaches 3 of 14 adapted layers (model.layers.0.mlp.gate_proj)" in said
    backend.base.model.norm.forward = lambda states: states.detach().requires_grad_()
    with pytest.raises(MachineError, match="No gradient reaches the adapter"):
        check_reach(backend)
