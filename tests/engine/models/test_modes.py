"""Nothing of a pass is left in the model for the next one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.config import load_train_config  # noqa: E402
from sdft_cli.engine.models.adapters import weights  # noqa: E402
from sdft_cli.engine.models.backend import Backend  # noqa: E402
from sdft_cli.engine.models.load import load_backend, open_for_eval  # noqa: E402
from sdft_cli.engine.models.modes import evaluating, switch_off_dropout  # noqa: E402
from sdft_cli.engine.passes.choose import choose_sharing  # noqa: E402
from sdft_cli.engine.passes.decode import generate  # noqa: E402
from sdft_cli.engine.passes.executors import answer_states  # noqa: E402
from tests.engine.models.families import WORDS, make_model, make_qwen_vl  # noqa: E402

DROPOUT = {
    "llama": {"attention_dropout": 0.5},
    "gpt2": {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5},
    "opt": {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5},
    "phi": {"attention_dropout": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5},
    "falcon": {"attention_dropout": 0.5, "hidden_dropout": 0.5},
    "gpt_neox": {"attention_dropout": 0.5, "hidden_dropout": 0.5},
    "starcoder2": {"attention_dropout": 0.5, "residual_dropout": 0.5, "embedding_dropout": 0.5},
    "biogpt": {"attention_probs_dropout_prob": 0.5, "hidden_dropout_prob": 0.5, "layerdrop": 0.5},
    "granitemoe": {"attention_dropout": 0.5, "num_local_experts": 2, "num_experts_per_tok": 1},
}
IDS = torch.randint(3, WORDS, (1, 20), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", DROPOUT)
def test_dropout_of_the_base_is_off_in_training_mode_too(family: str) -> None:
    model = make_model(family, **DROPOUT[family]).train()
    with torch.no_grad():
        noisy = [model(input_ids=IDS).logits for _ in range(3)]
        assert not (torch.equal(noisy[0], noisy[1]) and torch.equal(noisy[0], noisy[2]))
        switch_off_dropout(model)
        found = [model(input_ids=IDS).logits for _ in range(2)]
        assert torch.equal(*found)
        assert torch.allclose(found[0], model.eval()(input_ids=IDS).logits, atol=1e-5)


def loaded(folder: Path, model: Any, *settings: str) -> Backend:
    """Save a model and load it as a run does."""
    model.save_pretrained(folder)
    config = load_train_config("cpu-demo", list(settings), {"model": str(folder)})
    return load_backend(config, "transformers", str(folder))


@pytest.mark.parametrize("checkpointing", ["true", "false"])
def test_a_frozen_teacher_says_the_same_after_a_rollout(checkpointing: str, tmp_path: Path) -> None:
    """The modules' modes too are afterwards what they were, each one's."""
    model = make_model("llama", **DROPOUT["llama"])
    backend = loaded(tmp_path, model, f"gradient_checkpointing={checkpointing}", "lora.dropout=0.5")
    modes = {name: module.training for name, module in backend.model.named_modules()}
    ids = IDS[0].tolist()
    with weights(backend.model, "base"):
        first = answer_states(backend, [ids[:10]], [ids[10:]], 2)
        generate(backend, [ids[:5], ids[:9]], 4, [], 2)
        assert torch.equal(answer_states(backend, [ids[:10]], [ids[10:]], 2), first)
    assert {name: module.training for name, module in backend.model.named_modules()} == modes
    on = {name for name, training in modes.items() if training}
    assert any("lora_dropout" in name for name in on)
    layers = {name for name in on if "lora_" not in name}
    assert {name.rsplit(".", 1)[-1] for name in layers} == ({"0", "1", "model"} if checkpointing == "true" else set())


def test_dropout_of_the_adapter_stays_on_in_training_passes(tmp_path: Path) -> None:
    backend = loaded(tmp_path, make_model("llama"), "lora.dropout=0.5")
    for parameter in backend.parameters():
        torch.nn.init.normal_(parameter)
    one, other = (backend.trunk_pass(input_ids=IDS).last_hidden_state for _ in range(2))
    assert not torch.equal(one, other)
    with evaluating(backend.model):
        one, other = (backend.trunk_pass(input_ids=IDS).last_hidden_state for _ in range(2))
    assert torch.equal(one, other)


def test_gradient_checkpointing_checkpoints(tmp_path: Path) -> None:
    """The gradient is that of a pass without it, and every layer runs a second time for it."""
    found = []
    for setting in ("true", "false"):
        backend = loaded(tmp_path, make_model("llama"), f"gradient_checkpointing={setting}")
        generator = torch.Generator().manual_seed(0)
        for parameter in backend.parameters():
            parameter.data.normal_(generator=generator)
        runs: list[int] = []
        for layer in backend.trunk.layers:  # type: ignore[union-attr]
            layer.mlp.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        backend.trunk_pass(input_ids=IDS, use_cache=False).last_hidden_state.square().sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in backend.parameters()]))
        assert len(runs) == (4 if setting == "true" else 2)
    assert torch.allclose(found[0], found[1], rtol=1e-4, atol=1e-5 * float(found[1].abs().max()))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("sharing", ["none", "packed", "depth_first"])
def test_offsets_of_positions_that_decoding_leaves_are_forgotten(family: str, sharing: str, tmp_path: Path) -> None:
    """Rollouts of two, then passes over one and three: the offsets of the two would not fit, or would shift."""
    make_qwen_vl(family).save_pretrained(tmp_path)
    backend = open_for_eval(str(tmp_path), "float32", None, None)
    choose_sharing(backend, sharing)
    ids = IDS[0].tolist()
    prompts, answers = [ids[:10], ids[:10], ids[:6]], [ids[10:15], ids[11:14], ids[6:9]]
    before = answer_states(backend, prompts, answers, 2)
    for count in (2, 3):
        rollouts = generate(backend, prompts[:count], 3, [], 2)
        backend.trunk.rope_deltas = torch.full((count, 1), 7)
        assert torch.equal(answer_states(backend, prompts, answers, 2), before)
        backend.trunk.rope_deltas = torch.full((5, 1), 7)
        assert generate(backend, prompts[:count], 3, [], 2) == rollouts
