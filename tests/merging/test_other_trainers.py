"""`sdft merge ADAPTER --base MODEL`: an adapter folder that no run of ours wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from typer.testing import CliRunner  # noqa: E402

from sdft_cli.cli.main import app  # noqa: E402
from sdft_cli.engine.models.backend_transformers import load_model  # noqa: E402
from sdft_cli.merging.certificate import check_certified  # noqa: E402
from tests.merging.families import save  # noqa: E402
from tests.merging.test_families import adapted, agree  # noqa: E402


def merge(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["merge", *map(str, arguments)])


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "v_proj"], "use_dora": True, "rank_pattern": {"q_proj": 2}},
        {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm"], "use_rslora": True},
    ],
)
def test_an_adapter_folder_is_merged_with_a_certificate(
    tiny_model: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    model = adapted(tiny_model, tmp_path / "adapter", **settings)
    done = merge(tmp_path / "adapter", "--base", tiny_model, "--dtype", "float32")
    assert done.exit_code == 0, done.output
    out = tmp_path / "adapter-merged"
    check = check_certified(out, tmp_path / "adapter", "float32", str(tiny_model))
    assert check["uses"] == [
        key for key in ("use_rslora", "use_dora", "rank_pattern", "modules_to_save") if key in settings
    ]
    assert check["behaviour"]["answers"] == 8
    assert check["behaviour"]["mean_kl"] < 1e-4 < check["behaviour"]["base_mean_kl"]
    agree(out, model)
    card = (out / "README.md").read_text()
    assert f"# `{tiny_model.name}` with an adapter" in card
    assert str(tmp_path) not in card
    assert str(tiny_model.parent) not in card


def test_the_base_has_to_be_named_and_another_one_is_told(tiny_model: Path, tmp_path: Path) -> None:
    adapted(tiny_model, tmp_path / "adapter", target_modules=["q_proj"])
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "owner/model"}))
    done = merge(tmp_path / "adapter", "--bf16")
    assert done.exit_code == 2
    assert "name the model that it was trained on, e.g. --base owner/model." in " ".join(done.output.split())
    done = merge(tmp_path / "adapter", "--bf16", "--base", tiny_model, "--prompts", 1)
    assert done.exit_code == 0, done.output
    assert "says that it was trained on owner/model; it is merged into" in " ".join(done.output.split())


def test_what_only_a_run_has_and_what_is_not_known_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    adapted(tiny_model, tmp_path / "adapter", target_modules=["q_proj"])
    for more in (["--best"], ["--push", "me/model"]):
        done = merge(tmp_path / "adapter", "--bf16", "--base", tiny_model, *more)
        assert done.exit_code != 0
    for out in (tmp_path / "adapter" / "x", tiny_model):
        done = merge(tmp_path / "adapter", "--bf16", "--base", tiny_model, "--overwrite", "--out", out)
        assert done.exit_code == 2, done.output
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "init_lora_weights": "pissa"}))
    done = merge(tmp_path / "adapter", "--bf16", "--base", tiny_model)
    assert done.exit_code == 3
    assert "init_lora_weights=pissa" in done.output
    assert {path.name for path in tmp_path.iterdir()} == {"adapter"}


def test_an_adapter_of_the_language_model_alone(tmp_path: Path) -> None:
    """Another trainer loaded the text model of a checkpoint that has a vision tower: its modules have other names."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    base = save("qwen3_5", tmp_path / "base")
    text = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    assert type(text).__name__ == "Qwen3_5ForCausalLM"
    model = peft.get_peft_model(text, peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "in_proj_qkv"]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_().mul_(0.2)
    model.eval().save_pretrained(tmp_path / "adapter")
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.model.layers.") for name in names)
    done = merge(tmp_path / "adapter", "--base", base, "--dtype", "float32", "--prompts", 2)
    assert done.exit_code == 0, done.output
    whole = load_model(str(tmp_path / "adapter-merged"), torch.float32, torch.device("cpu"))
    assert type(whole).__name__ == "Qwen3_5ForConditionalGeneration"
    ids = torch.tensor([[1, 17, 40, 9]])
    with torch.no_grad():
        torch.testing.assert_close(whole(input_ids=ids).logits, model(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
