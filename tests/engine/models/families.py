"""Tiny random models of many families, made in memory: two layers, hidden 32."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

WORDS = 97
COMMON: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "initializer_range": 0.3,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 64}
MAMBA = {"state_size": 4, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 16, "expand": 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "granite": {"logits_scaling": 8.0, "residual_multiplier": 0.22},
    "cohere": {"logit_scale": 0.0625},
    "cohere2": {"logit_scale": 0.25, "sliding_window": 16},
    "gemma2": {"final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8, "sliding_window": 16},
    "gemma3_text": {"final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8, "sliding_window": 16},
    "phi": {"num_key_value_heads": 4},
    "gptj": {**GPT2, "rotary_dim": 4},
    "falcon_h1": {"lm_head_multiplier": 0.3, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_state": 8},
    "gpt_neox": {},
    "falcon": {"head_dim": ..., "new_decoder_architecture": True, "num_kv_heads": 2},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 16},
    "gpt2": GPT2,
    "mamba": {"state_size": 4},
    "mamba2": MAMBA,
    "minicpm3": {
        "dim_model_base": 8,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 4,
        "qk_rope_head_dim": 4,
    },
    "hyperclovax": {"logits_scaling": 0.3},
    "nanochat": {"final_logit_softcapping": 2.0},
    "starcoder2": {"sliding_window": None},
    "olmo2": {},
    "qwen3": {},
}


def make_config(model_type: str, **settings: Any) -> Any:
    """Return the config of a family's tiny model; `settings` are added to the family's own."""
    chosen = {**COMMON, **SETTINGS.get(model_type, {}), **settings}
    return AutoConfig.for_model(model_type, **{name: value for name, value in chosen.items() if value is not ...})


def make_model(model_type: str, **settings: Any) -> Any:
    """Return a family's tiny random model in fp32, in eval mode; every bias is random too."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make_config(model_type, **settings)).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return model


def make_qwen_vl(model_type: str) -> Any:
    """Return a tiny Qwen2.5-VL or Qwen3-VL with its vision tower, in eval mode."""
    import transformers

    kind = {"qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[model_type]
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
    text = {**COMMON, "rope_parameters": rope | ({"mrope_interleaved": True} if model_type == "qwen3_vl" else {})}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32}
    if model_type == "qwen3_vl":
        vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=vision)
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
