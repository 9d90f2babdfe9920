"""Tiny random checkpoints of families whose names on disk differ from those in memory, or may."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
QWEN_VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32}
SIGLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
MROPE = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
DELTA_NET = {
    "num_hidden_layers": 4,
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LINEARS = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]


def text(model_type: str, **sizes: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**SIZES, **sizes}))


def multimodal(name: str, text_config: dict[str, Any], vision: dict[str, Any], **more: Any) -> Any:
    import transformers

    config = getattr(transformers, f"{name}Config")(
        text_config={**SIZES, **text_config}, vision_config=vision, tie_word_embeddings=False, **more
    )
    return getattr(transformers, f"{name}ForConditionalGeneration")(config)


FAMILIES: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "llama": (lambda: text("llama", tie_word_embeddings=False), LINEARS),
    "llama tied": (lambda: text("llama", tie_word_embeddings=True), LINEARS),
    "gemma3": (
        lambda: multimodal(
            "Gemma3", {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8}, SIGLIP, mm_tokens_per_image=4
        ),
        LINEARS,
    ),
    "mistral3": (
        lambda: multimodal(
            "Mistral3",
            {"model_type": "mistral", "head_dim": 8},
            {**SIGLIP, "model_type": "pixtral", "head_dim": 8},
            spatial_merge_size=2,
        ),
        LINEARS,
    ),
    "internvl": (
        lambda: multimodal(
            "InternVL",
            {"model_type": "qwen2"},
            {**SIGLIP, "image_size": [28, 28], "patch_size": [14, 14]},
            image_token_id=5,
        ),
        LINEARS,
    ),
    "llava": (
        lambda: multimodal("Llava", {"model_type": "llama"}, {**SIGLIP, "model_type": "clip_vision_model"}),
        LINEARS,
    ),
    "qwen2.5-vl": (
        lambda: multimodal(
            "Qwen2_5_VL", {"rope_parameters": MROPE}, {**QWEN_VISION, "fullatt_block_indexes": [1]}, image_token_id=5
        ),
        LINEARS,
    ),
    "qwen3-vl": (
        lambda: multimodal(
            "Qwen3VL",
            {"head_dim": 8, "rope_parameters": {**MROPE, "mrope_interleaved": True}},
            {**QWEN_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        ),
        LINEARS,
    ),
    "qwen3.5": (
        lambda: multimodal("Qwen3_5", DELTA_NET, {**QWEN_VISION, "num_position_embeddings": 16}),
        [*LINEARS, "in_proj_qkv", "in_proj_z", "out_proj"],
    ),
    "nemotron-h": (
        lambda: text(
            "nemotron_h",
            layers_block_type=["mamba", "attention", "mlp"],
            num_hidden_layers=3,
            head_dim=8,
            mamba_num_heads=4,
            mamba_head_dim=8,
            ssm_state_size=8,
            n_groups=2,
            chunk_size=8,
        ),
        [*ATTENTION, "up_proj", "down_proj"],
    ),
    "mixtral": (lambda: text("mixtral", num_local_experts=4, head_dim=8), ATTENTION),
    "qwen3-moe": (
        lambda: text("qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8),
        ATTENTION,
    ),
    "granite-moe": (lambda: text("granitemoe", num_local_experts=4), ATTENTION),
    "qwen2": (lambda: text("qwen2"), LINEARS),
    "gpt2": (
        lambda: text("gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=256),
        ["c_attn", "c_proj", "c_fc"],
    ),
    "gpt-oss": (lambda: text("gpt_oss", num_local_experts=4, num_experts_per_tok=2, head_dim=8), ATTENTION),
    "phi3": (
        lambda: text("phi3", num_key_value_heads=4, original_max_position_embeddings=256),
        ["qkv_proj", "gate_up_proj", "o_proj", "down_proj"],
    ),
}


def save(family: str, folder: Path) -> Path:
    """Write a checkpoint as transformers does; its names on disk are those of the published ones."""
    import torch
    from transformers import GenerationConfig

    torch.manual_seed(0)
    model = FAMILIES[family][0]()
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder)
    return folder
