from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.config import load_train_config  # noqa: E402
from sdft_cli.engine.models.backend import Backend  # noqa: E402
from sdft_cli.engine.models.load import load_backend  # noqa: E402
from sdft_cli.engine.passes.decode import generate  # noqa: E402
from sdft_cli.engine.passes.executors import response_states  # noqa: E402
from sdft_cli.engine.passes.packed import packing_obstacle  # noqa: E402
from sdft_cli.engine.passes.padded import padded_passes  # noqa: E402

SHARED = [1, 5, 9, 7, 30, 31, 44]
PROMPTS = [[*SHARED, 50, 51], [*SHARED, 50, 52, 53], [*SHARED[:4], 60], [8, 9], SHARED]
ANSWERS = [[70, 71, 72], [73], [74, 75, 2], [76, 77], [50, 51, 70, 71]]


@pytest.fixture
def backend(tiny_model: Path) -> Backend:
    found = load_backend(load_train_config("cpu-demo", ["lora.rank=4"]), "transformers", str(tiny_model))
    torch.manual_seed(1)
    for p in found.parameters():
        p.data.add_(torch.randn_like(p) * 0.1)
    return found


def test_packed_states_and_gradients_equal_those_of_each_sequence_alone(backend: Backend) -> None:
    def run(packed: bool, together: bool) -> tuple[torch.Tensor, torch.Tensor]:
        backend.sharing = "packed" if packed else "none"
        for p in backend.parameters():
            p.grad = None
        groups = [range(5)] if together else [[i] for i in range(5)]
        states = torch.cat(
            [response_states(backend, [PROMPTS[i] for i in g], [ANSWERS[i] for i in g], 2) for g in groups]
        )
        (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
        return states.detach(), torch.cat([p.grad.flatten() for p in backend.parameters() if p.grad is not None])

    alone_states, alone_gradient = run(False, False)
    for packed in (True, False):
        states, gradient = run(packed, True)
        assert torch.allclose(states, alone_states, atol=1e-5)
        assert (gradient - alone_gradient).norm() <= 1e-5 * alone_gradient.norm()
        assert alone_gradient.norm() > 0


def test_packed_prefill_decodes_the_same_tokens(backend: Backend) -> None:
    plain = generate(backend, PROMPTS, 12, [2], 2)
    backend.sharing = "packed"
    assert generate(backend, PROMPTS, 12, [2], 2) == plain
    assert generate(backend, [[1, 5]], 12, [2], 2) == generate(backend, [[1, 5], [1, 5]], 12, [2], 2)[:1]


def test_a_prompt_of_one_token_decodes(backend: Backend) -> None:
    plain = generate(backend, [[5], [6]], 4, [2], 2)
    backend.sharing = "packed"
    assert generate(backend, [[5], [6]], 4, [2], 2) == plain
    assert len(generate(backend, [[5], [6, 7, 8], [6, 7, 9]], 4, [2], 2)) == 3


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"layer_types": ["linear_attention", "full_attention"]}, "linear_attention layers"),
        ({"sliding_window": 128}, "sliding window"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "positions of type dynamic"),
        ({"_attn_implementation": "flash_attention_2"}, "takes no boolean mask"),
    ],
)
def test_models_that_cannot_be_packed_are_named(backend: Backend, change: dict[str, object], why: str) -> None:
    for key, value in change.items():
        object.__setattr__(backend.base.config, key, value) if key.startswith("_") else setattr(
            backend.base.config, key, value
        )
    assert why in str(packing_obstacle(backend.base))


def test_padded_passes_fill_up_to_the_cap_and_no_item_is_lost() -> None:
    assert padded_passes([3, 3, 3, 3], 6) == [[0, 1], [2, 3]]
    assert padded_passes([1, 5, 1], 6) == [[0, 2], [1]]
    assert padded_passes([9, 1], 6) == [[1], [0]]
    assert padded_passes([1, 1, 1], 6, max_items=2) == [[0, 1], [2]]
    assert padded_passes([], 6) == []
