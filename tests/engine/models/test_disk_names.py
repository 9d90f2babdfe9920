"""Names in memory and on disk, against what transformers really loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from sdft_cli.engine.models.backend_transformers import load_model  # noqa: E402
from sdft_cli.engine.models.disk_names import DiskNames, check_mergeable, unloaded  # noqa: E402
from sdft_cli.engine.models.targets import check_reached  # noqa: E402
from sdft_cli.errors import DataError, UsageError  # noqa: E402
from tests.merging.families import FAMILIES, LINEARS, save  # noqa: E402


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_found_and_goes_there_and_back(tmp_path: Path, family: str) -> None:
    base = save(family, tmp_path / "base")
    disk = load_file(base / "model.safetensors")
    names, loaded = DiskNames(base), load_model(str(base), torch.float32, torch.device("cpu"))
    for parameter, value in loaded.named_parameters():
        group = names.group(parameter)
        made = names.to_model(group, {name: disk[name] for name in group.disk})
        assert torch.equal(made[parameter], value), parameter
        back = names.to_disk(group, made)
        assert back.keys() == set(group.disk)
        assert all(torch.equal(back[name], disk[name]) for name in group.disk)
        assert names.obstacle(parameter) is None
    assert {name for group in names.groups.values() for name in group.disk} == disk.keys()


def test_names_that_differ_are_those_of_the_published_checkpoints(tmp_path: Path) -> None:
    names = DiskNames(save("gemma3", tmp_path / "gemma3"))
    (disk,) = names.group("model.language_model.layers.1.mlp.up_proj.weight").disk
    assert disk == "language_model.model.layers.1.mlp.up_proj.weight"
    assert names.at_run_time(disk) == "model.language_model.layers.1.mlp.up_proj.weight"
    assert names.at_run_time("nothing.weight") is None
    experts = DiskNames(save("mixtral", tmp_path / "mixtral")).group("model.layers.0.mlp.experts.gate_up_proj")
    assert len(experts.disk) == 8
    assert "model.layers.0.block_sparse_moe.experts.3.w3.weight" in experts.disk


def test_a_target_whose_tensor_is_not_on_disk_is_refused_by_name(tmp_path: Path) -> None:
    base = save("llama_untied", tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    names = DiskNames(base)
    check_mergeable(names, ["q_proj"])
    with pytest.raises(
        UsageError, match=r"layers\.1\.mlp\.up_proj could be trained and not merged \(No tensor .*leave up_proj out"
    ):
        check_mergeable(names, ["q_proj", "up_proj"])


def test_a_conversion_that_cannot_be_undone_is_refused_by_name(tmp_path: Path, monkeypatch: Any) -> None:
    """As if transformers made the weight by an operation that has no way back: it defines no `reverse_op`."""
    from transformers import conversion_mapping
    from transformers.core_model_loading import ConversionOps, Transpose, WeightConverter

    class Halved(ConversionOps):
        def convert(self, input_dict: dict[str, Any], source_patterns: Any, target_patterns: Any, **_: Any) -> Any:
            return {target_patterns[0]: next(iter(input_dict.values()))[0]}

    base = save("llama_untied", tmp_path / "base")

    def mapping(operation: Any) -> Any:
        return lambda model, *_, **__: [WeightConverter("o_proj.weight", "o_proj.weight", operations=[operation])]

    monkeypatch.setattr(conversion_mapping, "get_model_conversion_mapping", mapping(Halved()))
    with pytest.raises(UsageError, match=r"o_proj could be trained and not merged \(transformers makes it by Halved"):
        check_mergeable(DiskNames(base), LINEARS)
    monkeypatch.setattr(conversion_mapping, "get_model_conversion_mapping", mapping(Transpose(0, 1)))
    names = DiskNames(base)
    check_mergeable(names, LINEARS)
    group, weight = names.group("model.layers.0.self_attn.o_proj.weight"), torch.randn(32, 32)
    assert torch.equal(names.to_model(group, {group.disk[0]: weight})[group.parameters[0]], weight.T)
    assert torch.equal(names.to_disk(group, {group.parameters[0]: weight.T})[group.disk[0]], weight)


@pytest.mark.parametrize("family", ["llama_untied", "llama", "gemma3"])
@pytest.mark.parametrize(("leaf", "what"), [("lm_head", "the output head"), ("embed_tokens", "the token embedding")])
def test_head_and_embedding_are_refused_as_targets(tmp_path: Path, family: str, leaf: str, what: str) -> None:
    model = unloaded(save(family, tmp_path / "base"))
    check_reached(model, LINEARS)
    with pytest.raises(UsageError, match=f"^{leaf} is {what}, which the loss reads without an adapter"):
        check_reached(model, ["q_proj", leaf])


def test_a_damaged_or_missing_file_is_one_sentence(tmp_path: Path) -> None:
    base = save("llama_untied", tmp_path / "base")
    index = {"weight_map": {"x": "model.safetensors", "y": "model-2.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"model-2\.safetensors is missing or damaged .*: get the model again\.$"):
        DiskNames(base)
