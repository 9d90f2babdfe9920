from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.config import DistillSettings, TrainConfig, load_train_config  # noqa: E402
from sdft_cli.engine.models.adapters import lora_layers, weights  # noqa: E402
from sdft_cli.engine.models.backend import Backend  # noqa: E402
from sdft_cli.engine.models.backend_transformers import attach_lora, load_model  # noqa: E402
from sdft_cli.engine.models.load import load_backend  # noqa: E402
from sdft_cli.engine.objective.loss import distillation_loss  # noqa: E402
from sdft_cli.engine.passes.executors import response_states  # noqa: E402
from sdft_cli.errors import UsageError  # noqa: E402

PROMPTS, ANSWERS = [[1, 5, 9, 7], [1, 8]], [[11, 12, 13], [14, 2]]


@pytest.fixture
def config() -> TrainConfig:
    return load_train_config("cpu-demo", ["lora.rank=4", "lora.alpha=8"])


@pytest.fixture
def backend(config: TrainConfig, tiny_model: Path) -> Backend:
    return load_backend(config, "transformers", str(tiny_model))


def randomise(model: Any) -> None:
    """Give B values, as training would."""
    generator = torch.Generator().manual_seed(3)
    for layer in lora_layers(model).values():
        layer.lora_B["default"].weight.data.normal_(generator=generator).mul_(0.3)


def test_teacher_logits_equal_the_base_models(backend: Backend, tiny_model: Path) -> None:
    randomise(backend.model)
    base = load_model(str(tiny_model), torch.float32, torch.device("cpu"))
    ids = torch.tensor([[*PROMPTS[0], *ANSWERS[0]]])
    with weights(backend.model, "base"):
        teacher = backend.model(input_ids=ids).logits
    assert torch.equal(teacher, base(input_ids=ids).logits)
    assert not torch.allclose(backend.model(input_ids=ids).logits, teacher, atol=1e-3)


def test_an_untrained_adapter_without_the_reference_has_no_divergence(backend: Backend) -> None:
    student = response_states(backend, PROMPTS, ANSWERS, 2)
    with weights(backend.model, "base"):
        teacher = response_states(backend, PROMPTS, ANSWERS, 2)
    found = distillation_loss(student, teacher, backend.head, torch.full((5,), 0.2), DistillSettings())
    assert abs(found.loss.item()) <= 1e-6


def test_response_states_are_those_of_each_sequence_alone(backend: Backend) -> None:
    randomise(backend.model)
    together = response_states(backend, PROMPTS, ANSWERS, 2)
    alone = torch.cat([response_states(backend, [p], [a], 2) for p, a in zip(PROMPTS, ANSWERS, strict=True)])
    assert torch.allclose(together, alone, atol=1e-5)
    # The state before an answer's first token predicts it: logits of the plain forward pass at |x| - 1.
    logits = backend.model(input_ids=torch.tensor([[*PROMPTS[0], *ANSWERS[0]]])).logits[0, 3:6]
    assert torch.allclose(backend.head.logits(together[:3]), logits, atol=1e-5)


def test_merged_sampling_weights_compute_the_same_and_are_put_back_bit_for_bit(backend: Backend) -> None:
    randomise(backend.model)
    before = {name: tensor.clone() for name, tensor in backend.model.state_dict().items()}
    ids = torch.tensor([[*PROMPTS[0], *ANSWERS[0]]])
    adapted = backend.model(input_ids=ids).logits
    with weights(backend.model, "merged"):
        assert torch.allclose(backend.model(input_ids=ids).logits, adapted, atol=1e-4)
    with pytest.raises(ZeroDivisionError), weights(backend.model, "merged"):
        raise ZeroDivisionError
    after = backend.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert torch.equal(backend.model(input_ids=ids).logits, adapted)


def test_only_the_adapter_is_trainable_and_it_starts_from_the_seed(config: TrainConfig, tiny_model: Path) -> None:
    first = load_backend(config, "transformers", str(tiny_model))
    torch.rand(7)
    second = load_backend(config, "transformers", str(tiny_model))
    names = [n for n, p in first.model.named_parameters() if p.requires_grad]
    assert all("lora_" in n for n in names)
    assert len(names) == 2 * 7 * 2  # A and B, seven modules, two layers
    assert all(p.dtype == torch.float32 for p in first.parameters())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_an_unknown_target_is_refused_by_name(tiny_model: Path) -> None:
    config = load_train_config("cpu-demo", ["lora.target_modules=[q_proj, in_proj_qkv]"])
    with pytest.raises(UsageError, match="no language module named in_proj_qkv"):
        load_backend(config, "transformers", str(tiny_model))


def tiny_qwen35() -> Any:
    """A random hybrid with a vision tower: linear and full attention, as Qwen3.5 is built."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    text = {
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
    }
    torch.manual_seed(0)
    return Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text, vision_config=vision))


def test_no_adapter_lands_on_a_vision_module_and_all_ten_targets_are_hit() -> None:
    config = load_train_config("qwen3.5-9b-64k", ["lora.rank=2", "lora.alpha=4"])
    model = attach_lora(tiny_qwen35(), config)
    adapted = lora_layers(model)
    assert adapted
    assert not [name for name in adapted if "visual" in name or "vision" in name]
    assert {name.rsplit(".", 1)[-1] for name in adapted} == set(config.lora.target_modules)
    assert len(config.lora.target_modules) == 10
    # Three linear-attention layers with 3 targets, one full-attention layer with 4, and 3 of the MLP in all four.
    assert len(adapted) == 3 * 3 + 4 + 4 * 3


def test_hybrid_with_vision_tower_trains_through_the_same_interface() -> None:
    from sdft_cli.engine.models.backend_transformers import TransformersBackend

    config = load_train_config("qwen3.5-9b-64k", ["lora.rank=2", "lora.alpha=4"])
    backend = TransformersBackend(attach_lora(tiny_qwen35(), config).eval(), torch.device("cpu"))
    student = response_states(backend, PROMPTS, ANSWERS, 2)
    with weights(backend.model, "base"):
        teacher = response_states(backend, [[3, 4, *p] for p in PROMPTS], ANSWERS, 2)
    distillation_loss(student, teacher, backend.head, torch.full((5,), 0.2), DistillSettings()).loss.backward()
    reached = {
        n.split(".lora_B")[0].rsplit(".", 1)[-1]
        for n, p in backend.model.named_parameters()
        if p.grad is not None and "lora_B" in n and p.grad.abs().max() > 0
    }
    assert reached == set(config.lora.target_modules)
