from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from sdft_cli.config import load_train_config  # noqa: E402
from sdft_cli.engine.adapters import lora_layers  # noqa: E402
from sdft_cli.engine.backend import load_backend  # noqa: E402
from sdft_cli.engine.runs import FORMAT, CheckPrompt, read_run, write_check_prompts, write_json  # noqa: E402
from sdft_cli.errors import DataError, VerificationError  # noqa: E402
from sdft_cli.merge.merge import merge_run  # noqa: E402
from sdft_cli.merge.verify import compare, failures  # noqa: E402
from sdft_cli.merge.weights import Adapter, base_shards, merge_weights  # noqa: E402


@pytest.fixture
def run(tiny_model: Path, tmp_path: Path) -> Path:
    """A run folder whose adapter moves the model visibly."""
    config = load_train_config("cpu-demo", ["lora.rank=4", "lora.alpha=8"], {"model": str(tiny_model)})
    backend = load_backend(config, "transformers", str(tiny_model))
    generator = torch.Generator().manual_seed(3)
    for layer in lora_layers(backend.model).values():
        layer.lora_B["default"].weight.data.normal_(generator=generator).mul_(1.0)
    folder = tmp_path / "run"
    folder.mkdir()
    backend.save_adapter(folder / "adapter")
    write_json(folder / "config.json", config.model_dump(mode="json"))
    write_json(folder / "run.json", {"format": FORMAT})
    write_check_prompts(
        folder / "check_prompts.jsonl", [CheckPrompt([1, 5, 9, 7], [11, 12, 13]), CheckPrompt([1], [4])]
    )
    return folder


def test_every_tensor_is_the_fp32_sum_cast_once_or_untouched(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    check = merge_run(read_run(run), str(tiny_model), tmp_path / "merged")
    base, merged = load_file(tiny_model / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    adapter = load_file(run / "adapter" / "adapter_model.safetensors")
    assert base.keys() == merged.keys()
    adapted = 0
    for name, weight in base.items():
        module = "base_model.model." + name.removesuffix(".weight")
        if f"{module}.lora_A.weight" in adapter:
            delta = 2.0 * (adapter[f"{module}.lora_B.weight"].double() @ adapter[f"{module}.lora_A.weight"].double())
            expected = (weight.double() + delta).to(torch.bfloat16)
            ulps = (merged[name].view(torch.int16).int() - expected.view(torch.int16).int()).abs().max()
            assert ulps <= 1
            assert not torch.equal(merged[name], weight)
            adapted += 1
        else:
            assert torch.equal(merged[name], weight)
    assert check["adapted_tensors"] == adapted == 14
    assert check["mean_kl"] < 1e-3 < check["base_mean_kl"]
    assert check["positions"] == 4


def test_the_checkpoint_stands_alone(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merge_run(read_run(run), str(tiny_model), tmp_path / "merged")
    names = {p.name for p in (tmp_path / "merged").iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert model.dtype == torch.bfloat16
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False).startswith("<|im_start|>")


def test_several_shards_are_merged_one_by_one(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({n: tensors[n] for n in part}, base / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {n: file for file, part in parts.items() for n in part}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [p.name for p in base_shards(base)] == sorted(parts)
    merge_run(read_run(run), str(base), tmp_path / "sharded")
    merge_run(read_run(run), str(tiny_model), tmp_path / "whole")
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    sharded = {k: v for file in parts for k, v in load_file(tmp_path / "sharded" / file).items()}
    assert sharded.keys() == whole.keys()
    assert all(torch.equal(sharded[k], whole[k]) for k in whole)


@pytest.mark.parametrize("sabotage", ["wrong scaling", "no adapter", "swapped tensor"])
def test_a_merge_that_is_not_the_trained_model_fails_and_leaves_nothing(
    run: Path, tiny_model: Path, tmp_path: Path, sabotage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sdft_cli.merge.merge as module

    def sabotaged(base: Path, adapter: Adapter, out: Path) -> Any:
        if sabotage == "wrong scaling":
            adapter.scaling *= 2
        if sabotage == "no adapter":
            adapter.scaling = 0.0
        counts = merge_weights(base, adapter, out)
        if sabotage == "swapped tensor":
            tensors = load_file(out / "model.safetensors")
            tensors["model.layers.0.self_attn.q_proj.weight"].neg_()
            save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
        return counts

    monkeypatch.setattr(module, "merge_weights", sabotaged)
    with pytest.raises(VerificationError, match="is not the model that was trained"):
        merge_run(read_run(run), str(tiny_model), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_an_adapter_of_another_base_is_refused(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    tensors = load_file(base / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, base / "model.safetensors")
    with pytest.raises(VerificationError, match=r"no tensor model\.layers\.1\.mlp\.up_proj\.weight"):
        merge_run(read_run(run), str(base), tmp_path / "merged")
    (run / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(DataError, match=r"adapter_model\.safetensors"):
        read_run(run)


def test_survival_is_counted_over_elements_that_the_delta_changes(tmp_path: Path) -> None:
    from sdft_cli.merge.weights import MergeCounts, _merged

    counts = MergeCounts()
    weight = torch.tensor([[1.0, 1.0, 1.0]], dtype=torch.bfloat16)
    merged = _merged(weight, torch.tensor([[0.5, 1e-6, 0.0]]), torch.bfloat16, counts)
    assert merged.tolist() == [[1.5, 1.0, 1.0]]
    assert (counts.delta_elements, counts.surviving_elements, counts.surviving_share) == (2, 1, 0.5)


def test_comparison_by_hand_and_what_fails() -> None:
    trained = torch.tensor([[0.75, 0.25]]).log()
    base = torch.tensor([[0.5, 0.5]]).log()
    found = compare(trained, trained, base)
    assert found["mean_kl"] == 0.0
    assert found["base_mean_kl"] == pytest.approx(0.1308, abs=1e-4)
    assert failures(found) == []
    assert failures({"mean_kl": float("nan"), "base_mean_kl": 0.0})
    assert failures({"mean_kl": 0.009, "base_mean_kl": 0.02})
