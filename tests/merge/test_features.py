"""Adapters of plain peft with all that it offers: merged as transformers and peft merge them, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")


from tests.merge.families import LINEARS, save  # noqa: E402
from tests.merge.test_families import adapted, agree, merged  # noqa: E402

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
PATTERNS: dict[str, Any] = {
    "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 6},
    "alpha_pattern": {"v_proj": 5, "model.layers.0.self_attn.q_proj": 3},
}
MERGED: dict[str, tuple[str, dict[str, Any]]] = {
    "rslora": ("llama", {"target_modules": LINEARS, "use_rslora": True}),
    "dora": ("llama", {"target_modules": LINEARS, "use_dora": True}),
    "dora, names on disk differ": (
        "mistral3",
        {"target_modules": r".*language_model.*\.(q|up)_proj", "use_dora": True},
    ),
    "patterns": ("llama", {"target_modules": LINEARS, **PATTERNS}),
    "rslora, dora and patterns": (
        "llama",
        {"target_modules": LINEARS, **PATTERNS, "use_dora": True, "use_rslora": True},
    ),
    "all-linear": ("llama", {"target_modules": "all-linear"}),
    "some layers, some not": (
        "llama",
        {"target_modules": LINEARS, "layers_to_transform": [1], "exclude_modules": ["o_proj"]},
    ),
    "head and embedding saved": (
        "llama",
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    ),
    "a norm saved": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm"]}),
    "embedding and head adapted": ("llama", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "token rows": ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": [3, 40, 7]}),
    "token rows, tied": ("llama tied", {"target_modules": ["q_proj"], "trainable_token_indices": [3, 40, 7]}),
    "biases": ("qwen2", {"target_modules": ["q_proj", "v_proj"], "bias": "lora_only"}),
    "all biases": ("qwen2", {"target_modules": ["q_proj", "o_proj"], "bias": "all"}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "conv1d, dora": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": True}),
    "experts of mixtral": ("mixtral", {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
    "experts of qwen3": (
        "qwen3-moe",
        {"target_modules": ["q_proj"], "target_parameters": EXPERTS, "rank_pattern": {r".*\.gate_up_proj": 6}},
    ),
    "one parameter of the experts": ("qwen3-moe", {"target_modules": [], "target_parameters": EXPERTS[1:]}),
    "all linears of a mixture": ("qwen3-moe", {"target_modules": LINEARS}),
    "experts, rslora": (
        "granite-moe",
        {"target_modules": ["q_proj"], "target_parameters": ["input_linear", "output_linear"], "use_rslora": True},
    ),
    "experts, in by out": ("gpt-oss", {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
}


@pytest.mark.parametrize("feature", MERGED)
def test_a_feature_is_merged_as_peft_merges_it(tmp_path: Path, feature: str) -> None:
    family, settings = MERGED[feature]
    base = save(family, tmp_path / "base")
    model = adapted(base, tmp_path / "adapter", **settings)
    merged(base, tmp_path / "adapter", tmp_path / "out")
    agree(tmp_path / "out", model)
