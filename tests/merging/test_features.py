"""Adapters of plain peft with all that it offers: merged as transformers and peft merge them, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")


from safetensors.torch import load_file, save_file  # noqa: E402

from sdft_cli.engine.models.disk_names import DiskNames  # noqa: E402
from sdft_cli.errors import DataError, VerificationError  # noqa: E402
from sdft_cli.merging.adapter import Adapter  # noqa: E402
from sdft_cli.merging.places import Places  # noqa: E402
from tests.merging.families import LINEARS, save  # noqa: E402
from tests.merging.test_families import adapted, agree, merged  # noqa: E402

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
PATTERNS: dict[str, Any] = {
    "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 6},
    "alpha_pattern": {"v_proj": 5, "model.layers.0.self_attn.q_proj": 3},
}
MERGED: dict[str, tuple[str, dict[str, Any]]] = {
    "rslora": ("llama_untied", {"target_modules": LINEARS, "use_rslora": True}),
    "dora": ("llama_untied", {"target_modules": LINEARS, "use_dora": True}),
    "dora, names on disk differ": (
        "mistral3",
        {"target_modules": r".*language_model.*\.(q|up)_proj", "use_dora": True},
    ),
    "patterns": ("llama_untied", {"target_modules": LINEARS, **PATTERNS}),
    "rslora, dora and patterns": (
        "llama_untied",
        {"target_modules": LINEARS, **PATTERNS, "use_dora": True, "use_rslora": True},
    ),
    "all-linear": ("llama_untied", {"target_modules": "all-linear"}),
    "some layers, some not": (
        "llama_untied",
        {"target_modules": LINEARS, "layers_to_transform": [1], "exclude_modules": ["o_proj"]},
    ),
    "head and embedding saved": (
        "llama_untied",
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    ),
    "a norm saved": ("llama_untied", {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm"]}),
    "embedding and head adapted": ("llama_untied", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "token rows": ("llama_untied", {"target_modules": ["q_proj"], "trainable_token_indices": [3, 40, 7]}),
    "token rows, tied": ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": [3, 40, 7]}),
    "biases": ("qwen2", {"target_modules": ["q_proj", "v_proj"], "bias": "lora_only"}),
    "all biases": ("qwen2", {"target_modules": ["q_proj", "o_proj"], "bias": "all"}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "conv1d, dora": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": True}),
    "experts of mixtral": ("mixtral", {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
    "experts of qwen3": (
        "qwen3_moe",
        {"target_modules": ["q_proj"], "target_parameters": EXPERTS, "rank_pattern": {r".*\.gate_up_proj": 6}},
    ),
    "one parameter of the experts": ("qwen3_moe", {"target_modules": [], "target_parameters": EXPERTS[1:]}),
    "all linears of a mixture": ("qwen3_moe", {"target_modules": LINEARS}),
    "experts, rslora": (
        "granitemoe",
        {"target_modules": ["q_proj"], "target_parameters": ["input_linear", "output_linear"], "use_rslora": True},
    ),
    "experts, in by out": ("gpt_oss", {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
}


@pytest.mark.parametrize("feature", MERGED)
def test_a_feature_is_merged_as_peft_merges_it(tmp_path: Path, feature: str) -> None:
    family, settings = MERGED[feature]
    base = save(family, tmp_path / "base")
    model = adapted(base, tmp_path / "adapter", **settings)
    merged(base, tmp_path / "adapter", tmp_path / "out")
    agree(tmp_path / "out", model)


def changed(adapter: Path, **settings: Any) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **settings}))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"peft_type": "IA3"}, "is of the kind IA3"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights=pissa_niter_4, which changes the base"),
    "loftq": ({"init_lora_weights": "loftq"}, "init_lora_weights=loftq, which changes the base"),
    "alora": ({"alora_invocation_tokens": [1, 2]}, "uses alora_invocation_tokens"),
    "replicated layers": ({"layer_replication": [[0, 2], [1, 2]]}, "uses layer_replication"),
    "lora_bias": ({"lora_bias": True}, "uses lora_bias"),
    "qalora": ({"use_qalora": True}, "uses use_qalora"),
    "what is not known yet": ({"use_tomorrow": {"a": 1}}, "uses use_tomorrow"),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base and a plain adapter."""
    folder = tmp_path_factory.mktemp("plain")
    base = save("llama_untied", folder / "base")
    adapted(base, folder / "adapter", target_modules=["q_proj"])
    return base, folder / "adapter"


def copied(adapter: Path, to: Path) -> Path:
    to.mkdir()
    for path in adapter.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


@pytest.mark.parametrize("feature", REFUSED)
def test_what_is_not_known_is_refused_by_name(plain: tuple[Path, Path], tmp_path: Path, feature: str) -> None:
    settings, sentence = REFUSED[feature]
    adapter = copied(plain[1], tmp_path / "adapter")
    Adapter(adapter, DiskNames(plain[0]))
    changed(adapter, **settings)
    with pytest.raises(DataError, match=f"{sentence}.* merge it with peft\\.$"):
        Adapter(adapter, DiskNames(plain[0]))


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("base_model.model.model.layers.9.self_attn.q_proj.lora_{}.weight", "has no model.layers.9.self_attn.q_proj"),
        ("base_model.model.model.layers.0.mlp.experts.0.w1.lora_{}.weight", "has no model.layers.0.mlp.experts.0.w1"),
        ("base_model.model.model.norm.lora_{}.weight", "uses LoRA on LlamaRMSNorm"),
        ("base_model.model.model.embed_tokens.lora_{}.weight", "uses LoRA on Embedding"),
        ("base_model.model.model.norm.other_{}", "holds .*other_A, a tensor besides lora_A and lora_B pairs"),
    ],
)
def test_tensors_that_have_no_place_are_refused_by_name(
    plain: tuple[Path, Path], tmp_path: Path, key: str, sentence: str
) -> None:
    adapter = copied(plain[1], tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    more = {key.format("A"): torch.ones(4, 32), key.format("B"): torch.ones(32, 4)}
    save_file({**tensors, **more}, adapter / "adapter_model.safetensors")
    with pytest.raises(DataError, match=sentence):
        Adapter(adapter, DiskNames(plain[0]))


def test_the_base_of_an_older_version_is_renamed(tmp_path: Path) -> None:
    """Adapters of earlier versions of transformers name modules as the files on disk do."""
    base = save("gemma3", tmp_path / "base")
    model = adapted(base, tmp_path / "adapter", target_modules=r".*language_model.*\.q_proj")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    before, after = "base_model.model.model.language_model.", "base_model.model.language_model.model."
    tensors = {name.replace(before, after): t for name, t in load_file(file).items()}
    assert all(name.startswith(after) for name in tensors)
    save_file(tensors, file)
    merged(base, tmp_path / "adapter", tmp_path / "out")
    agree(tmp_path / "out", model)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
    ],
)
def test_one_of_two_tied_weights_is_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    base = save("llama", tmp_path / "base")
    adapted(base, tmp_path / "adapter", **settings)
    names = DiskNames(base)
    with pytest.raises(DataError, match=r"which is one tensor with .* in the base \(tie_word_embeddings\)"):
        Places(Adapter(tmp_path / "adapter", names), names)


def test_a_vocabulary_that_was_resized_is_refused(tmp_path: Path) -> None:
    base = save("llama_untied", tmp_path / "base")
    adapted(base, tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.model.embed_tokens.weight"
    save_file({**tensors, name: torch.ones(100, 32)}, file)
    with pytest.raises(VerificationError, match=r"is \(1024, 32\) in the base and \(100, 32\) in the adapter"):
        merged(base, tmp_path / "adapter", tmp_path / "out")


@pytest.mark.parametrize("feature", ["rslora", "dora", "patterns", "experts of mixtral", "a norm saved"])
def test_the_certificate_sees_what_a_wrong_merge_would_write(tmp_path: Path, feature: str) -> None:
    """One tensor that the adapter changes is off by 1 %: as a wrong scaling would leave it."""
    from sdft_cli.merging.tensor_check import certify

    family, settings = MERGED[feature]
    base = save(family, tmp_path / "base")
    adapted(base, tmp_path / "adapter", **settings)
    merged(base, tmp_path / "adapter", tmp_path / "out", torch.bfloat16)
    names = DiskNames(base)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    places = Places(Adapter(tmp_path / "adapter", names), names)
    for name in (min(places.groups), max(places.groups)):
        wrong = {**tensors, name: tensors[name] * 1.01}
        save_file(wrong, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
        (failure,) = certify(base, tmp_path / "adapter", tmp_path / "out", torch.bfloat16, names).failures
        assert "is not base + (alpha / r) B A" in failure
