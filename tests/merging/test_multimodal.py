"""A checkpoint with a vision tower and MTP heads, of which training knows the language trunk only."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from sdft_cli.merging.tensor_file import TensorFile  # noqa: E402
from sdft_cli.run_folder import read_run  # noqa: E402
from sdft_cli.stages.merge import run_merge  # noqa: E402
from tests.merging.conftest import make_run  # noqa: E402

SHARDS = 4
IN_FP32 = ("linear_attn.A_log", "linear_attn.norm.weight")


@pytest.fixture(scope="module")
def multimodal(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen3.5 in several shards, with MTP heads that its class does not load.

    As published ones: bf16, and fp32 what decides how a linear attention forgets.
    """
    from transformers import GenerationConfig, Qwen3_5Config, Qwen3_5ForConditionalGeneration

    text = {
        "vocab_size": 49_152,
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
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    sizes = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32}
    vision = {**sizes, "num_position_embeddings": 16}
    torch.manual_seed(0)
    model = Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text, vision_config=vision))
    model.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=2)
    folder = tmp_path_factory.mktemp("models") / "tiny-qwen3.5"
    model.to(torch.bfloat16).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["dtype"] = "bfloat16"
    (folder / "config.json").write_text(json.dumps(config))
    for name in tensors:
        if name.endswith(IN_FP32):
            tensors[name] = tensors[name].float() * 1.001  # no bf16 numbers
    layer = "mtp.layers.0.self_attn"
    for name, shape in (
        (f"{layer}.q_proj.weight", (64, 32)),
        (f"{layer}.k_norm.weight", (8,)),
        ("mtp.fc.weight", (32, 64)),
    ):
        tensors[name] = torch.randn(shape).bfloat16()
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number in range(SHARDS):
        file = f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[number::SHARDS]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(smollm2 / name, folder / name)
    (folder / "preprocessor_config.json").write_text('{"size": 1}')
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nThe base's own card.\n")
    return folder


def bytes_by_name(folder: Path) -> dict[str, tuple[str, bytes]]:
    found = {}
    for path in folder.glob("*.safetensors"):
        with TensorFile(path) as file:
            found |= {name: (e.dtype, b"".join(file.chunks(name))) for name, e in file.entries.items()}
    return found


def test_what_was_not_trained_is_byte_identical_and_the_card_runs(multimodal: Path, tmp_path: Path) -> None:
    import transformers

    cpu = ["min_gpu_gb=null", "dtype=float32", "gradient_checkpointing=false"]
    run = read_run(make_run(tmp_path / "run", multimodal, "qwen3.5-9b-64k", cpu))
    out = tmp_path / "merged"
    check = run_merge(run, out)

    before, after = bytes_by_name(multimodal), bytes_by_name(out)
    assert before.keys() == after.keys()
    kept = [name for name in before if re.search(r"(^|\.)(visual|mtp)\.", name)]
    assert {name.split(".")[0] for name in kept} == {"model", "mtp"}
    assert len([n for n in kept if n.startswith("mtp.")]) == 3
    assert len([n for n in kept if n.startswith("model.visual.")]) > 20
    assert all(before[name] == after[name] for name in kept)
    exceptions = [name for name in before if name.endswith(IN_FP32)]
    assert len(exceptions) == 6
    assert {after[name][0] for name in exceptions} == {"F32"}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {tensor["name"] for tensor in check["adapted"]}
    assert {name.split(".")[-2] for name in changed} == set(run.config.lora.target_modules)
    assert check["untouched"] == {"identical": len(before) - len(changed), "cast to bfloat16": 0}
    assert check["files"]["preprocessor_config.json"] == "identical"

    model = transformers.AutoModelForMultimodalLM.from_pretrained(out)
    assert type(model).__name__ == "Qwen3_5ForConditionalGeneration"
    assert model.dtype == torch.bfloat16

    config = json.loads((out / "config.json").read_text())
    assert (config["dtype"], config["text_config"]["dtype"]) == ("bfloat16", "bfloat16")

    card = (out / "README.md").read_text(encoding="utf-8")
    assert "The base's own card" not in card
    assert "license: apache-2.0" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert 'model_id = "your-name/your-model"' in code
    assert "AutoModelForMultimodalLM" in code
    scope: dict[str, Any] = {"print": lambda text: None}
    exec(code.replace("your-name/your-model", str(out)).replace("max_new_tokens=512", "max_new_tokens=8"), scope)
    assert type(scope["model"]).__name__ == "Qwen3_5ForConditionalGeneration"
    assert scope["output"].shape[1] > scope["inputs"]["input_ids"].shape[1]


def test_float32_weights_are_named_in_the_sections_too(multimodal: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig

    cpu = ["min_gpu_gb=null", "dtype=float32", "gradient_checkpointing=false"]
    run = read_run(make_run(tmp_path / "run", multimodal, "qwen3.5-9b-64k", cpu))
    out = tmp_path / "merged"
    check = run_merge(run, out, dtype="float32")
    assert {dtype for dtype, _ in bytes_by_name(out).values()} == {"F32"}
    assert check["untouched"]["identical"] == 6  # those that were fp32 before
    config = AutoConfig.from_pretrained(out)
    assert (config.dtype, config.text_config.dtype) == (torch.float32, torch.float32)
