"""Families whose names on disk differ from those in memory, or may, and the linear layers that an adapter sits on."""

from __future__ import annotations

from pathlib import Path

from tests.families.tiny import make_model

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LINEARS = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
FAMILIES: dict[str, list[str]] = {
    **dict.fromkeys(("llama_untied", "llama", "qwen2", "gemma3", "mistral3", "internvl", "llava"), LINEARS),
    **dict.fromkeys(("qwen2_5_vl", "qwen3_vl"), LINEARS),
    **dict.fromkeys(("mixtral", "qwen3_moe", "granitemoe", "gpt_oss"), ATTENTION),
    "qwen3_5": [*LINEARS, "in_proj_qkv", "in_proj_z", "out_proj"],
    "nemotron_h": [*ATTENTION, "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "phi3": ["qkv_proj", "gate_up_proj", "o_proj", "down_proj"],
}


def save(family: str, folder: Path) -> Path:
    """Write a checkpoint in fp32 as transformers does; its names on disk are those of the published ones."""
    return make_model(family, folder, "float32")
