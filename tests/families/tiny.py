"""Tiny random models of many families with one small tokenizer and chat template: only the model's class differs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

VOCABULARY = 1024
BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "initializer_range": 0.3,  # logits with some shape; the usual 0.02 gives a uniform distribution
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
DELTA = {
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_hidden_layers": 4,
    "layer_types": [*["linear_attention"] * 3, "full_attention"],
}
MLA = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 8,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 16,
}
MAMBA = {"state_size": 8, "conv_kernel": 4, "expand": 2, "time_step_rank": 4}
MROPE = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10_000.0}
QWEN_VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32}
Family = Callable[[], Any]


def text(model_type: str, **more: Any) -> Family:
    """Return what makes the configuration of a language model."""

    def make() -> Any:
        from transformers import AutoConfig

        return AutoConfig.for_model(model_type, **{**BASE, **more})

    return make


def multimodal(model_type: str, language: dict[str, Any], vision: dict[str, Any], **more: Any) -> Family:
    """Return what makes the configuration of a model with a vision tower."""

    def make() -> Any:
        from transformers import AutoConfig

        return AutoConfig.for_model(model_type, text_config={**BASE, **language}, vision_config=vision, **more)

    return make


def old(model_type: str, **more: Any) -> Family:
    """Return what makes the configuration of a family with names of its own for its sizes."""

    def make() -> Any:
        from transformers import AutoConfig

        ids = {key: BASE[key] for key in ("vocab_size", "initializer_range", *TOKENS)}
        return AutoConfig.for_model(model_type, **{**ids, **more})

    return make


TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 4096, "n_inner": 64}
FAMILIES: dict[str, Family] = {
    "llama": text("llama", tie_word_embeddings=True),
    "llama_untied": text("llama", tie_word_embeddings=False),
    "llama_dropout": text("llama", attention_dropout=0.1),
    "llama_bias": text("llama", attention_bias=True, mlp_bias=True),
    "mistral": text("mistral", sliding_window=None),
    "mistral_window": text("mistral", sliding_window=64),
    "ministral": text("ministral", head_dim=8, sliding_window=64),
    "ministral3": text("ministral3", head_dim=8),
    "mixtral": text("mixtral", **EXPERTS),
    "qwen2": text("qwen2"),
    "qwen2_moe": text("qwen2_moe", shared_expert_intermediate_size=32, **EXPERTS),
    "qwen3": text("qwen3", head_dim=8),
    "qwen3_moe": text("qwen3_moe", head_dim=8, **EXPERTS),
    "qwen3_next": text("qwen3_next", shared_expert_intermediate_size=32, **EXPERTS, **DELTA),
    "qwen3_5_text": text("qwen3_5_text", **DELTA),
    "qwen3_5_moe_text": text("qwen3_5_moe_text", shared_expert_intermediate_size=32, **EXPERTS, **DELTA),
    "qwen3_5": multimodal("qwen3_5", DELTA, {**QWEN_VISION, "num_position_embeddings": 16}),
    "qwen3_5_moe": multimodal(
        "qwen3_5_moe",
        {**DELTA, **EXPERTS, "shared_expert_intermediate_size": 32},
        {**QWEN_VISION, "num_position_embeddings": 16},
    ),
    "qwen2_vl": multimodal(
        "qwen2_vl",
        {"rope_parameters": MROPE},
        {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2},
    ),
    "qwen2_5_vl": multimodal("qwen2_5_vl", {"rope_parameters": MROPE}, {**QWEN_VISION, "fullatt_block_indexes": [1]}),
    "qwen3_vl": multimodal(
        "qwen3_vl",
        {"head_dim": 8, "rope_parameters": {**MROPE, "mrope_interleaved": True}},
        {**QWEN_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
    ),
    "qwen3_vl_moe": multimodal(
        "qwen3_vl_moe",
        {"head_dim": 8, "rope_parameters": {**MROPE, "mrope_interleaved": True}, **EXPERTS},
        {**QWEN_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
    ),
    "gemma": text("gemma", head_dim=8),
    "gemma2": text("gemma2", head_dim=8, query_pre_attn_scalar=8, sliding_window=64),
    "gemma3_text": text("gemma3_text", head_dim=8, query_pre_attn_scalar=8, sliding_window=64),
    "gemma3": multimodal(
        "gemma3", {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 64}, VISION, mm_tokens_per_image=4
    ),
    "gemma3n_text": text(
        "gemma3n_text",
        head_dim=8,
        num_hidden_layers=4,
        layer_types=[*["sliding_attention"] * 3, "full_attention"],
        num_kv_shared_layers=0,
        sliding_window=64,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=8,
        activation_sparsity_pattern=[0.0] * 4,
        intermediate_size=64,
        laurel_rank=4,
    ),
    "gemma4_text": text(
        "gemma4_text",
        head_dim=8,
        global_head_dim=8,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=64,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=8,
        final_logit_softcapping=30.0,
    ),
    "gemma4": multimodal(
        "gemma4",
        {
            "head_dim": 8,
            "global_head_dim": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 64,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
            "final_logit_softcapping": 30.0,
        },
        {**VISION, "num_key_value_heads": 4, "head_dim": 8, "position_embedding_size": 64},
    ),
    "vaultgemma": text("vaultgemma", head_dim=8, query_pre_attn_scalar=8, sliding_window=64),
    "phi": text("phi", num_key_value_heads=4),
    "phi3": text("phi3", num_key_value_heads=4, original_max_position_embeddings=8192),
    "phimoe": text("phimoe", **EXPERTS),
    "granite": text("granite", logits_scaling=8.0, attention_multiplier=0.35, residual_multiplier=0.22),
    "granitemoe": text("granitemoe", logits_scaling=8.0, attention_multiplier=0.35, **EXPERTS),
    "granitemoehybrid": text(
        "granitemoehybrid",
        layer_types=["mamba", "attention"],
        mamba_n_heads=4,
        mamba_d_head=16,
        mamba_d_state=8,
        mamba_chunk_size=16,
        shared_intermediate_size=64,
        logits_scaling=8.0,
        **EXPERTS,
    ),
    "granitemoehybrid_dense": text(
        "granitemoehybrid",
        layer_types=["attention", "attention"],
        num_local_experts=0,
        shared_intermediate_size=64,
        mamba_n_heads=4,
        mamba_d_head=16,
        logits_scaling=8.0,
    ),
    "cohere": text("cohere", logit_scale=0.0625),
    "cohere2": text(
        "cohere2", logit_scale=0.0625, sliding_window=64, layer_types=["sliding_attention", "full_attention"]
    ),
    "olmo": text("olmo"),
    "olmo2": text("olmo2"),
    "olmo3": text("olmo3", sliding_window=64, layer_types=["sliding_attention", "full_attention"]),
    "olmoe": text("olmoe", **EXPERTS),
    "flex_olmo": text("flex_olmo", **EXPERTS),
    "smollm3": text("smollm3"),
    "lfm2": text("lfm2", layer_types=["conv", "full_attention"]),
    "lfm2_moe": text("lfm2_moe", layer_types=["conv", "full_attention"], num_dense_layers=1, **EXPERTS),
    "falcon": old("falcon", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, multi_query=True, alibi=False),
    "falcon_alibi": old("falcon", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True),
    "falcon_h1": text(
        "falcon_h1",
        mamba_d_ssm=32,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_chunk_size=16,
    ),
    "mamba": old("mamba", hidden_size=32, num_hidden_layers=2, **MAMBA),
    "falcon_mamba": old("falcon_mamba", hidden_size=32, num_hidden_layers=2, **MAMBA),
    "mamba2": old(
        "mamba2", hidden_size=32, num_hidden_layers=2, num_heads=4, head_dim=16, state_size=8, n_groups=1, chunk_size=16
    ),
    "bamba": text(
        "bamba",
        attn_layer_indices=[1],
        mamba_n_heads=4,
        mamba_d_head=16,
        mamba_d_state=8,
        mamba_chunk_size=16,
        mamba_n_groups=1,
    ),
    "jamba": text(
        "jamba",
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=8,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
        **EXPERTS,
    ),
    "nemotron": text("nemotron"),
    "nemotron_h": text(
        "nemotron_h",
        layers_block_type=["linear_attention", "full_attention", "mlp", "moe"],
        num_hidden_layers=4,
        head_dim=8,
        mamba_num_heads=4,
        mamba_head_dim=16,
        ssm_state_size=8,
        n_groups=1,
        chunk_size=16,
    ),
    "gpt_neox": text("gpt_neox"),
    "gpt2": old("gpt2", **GPT),
    "gpt_bigcode": old("gpt_bigcode", **GPT),
    "gpt_neo": old(
        "gpt_neo",
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        intermediate_size=64,
        max_position_embeddings=4096,
        attention_types=[[["global", "local"], 1]],
    ),
    "gptj": old("gptj", rotary_dim=4, **GPT),
    "codegen": old("codegen", rotary_dim=4, **GPT),
    "opt": text("opt", ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=4096),
    "bloom": old("bloom", hidden_size=32, n_layer=2, n_head=4),
    "mpt": old("mpt", d_model=32, n_heads=4, n_layers=2, max_seq_len=4096),
    "starcoder2": text("starcoder2"),
    "stablelm": text("stablelm"),
    "persimmon": text("persimmon"),
    "gpt_oss": text(
        "gpt_oss", head_dim=8, sliding_window=64, layer_types=["sliding_attention", "full_attention"], **EXPERTS
    ),
    "glm": text("glm", head_dim=8),
    "glm4": text("glm4", head_dim=8),
    "glm4_moe": text(
        "glm4_moe",
        head_dim=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
    ),
    "deepseek_v2": text("deepseek_v2", **MLA),
    "deepseek_v3": text("deepseek_v3", **MLA),
    "minicpm3": text("minicpm3", **MLA),
    "hunyuan_v1_dense": text("hunyuan_v1_dense", head_dim=8),
    "hunyuan_v1_moe": text("hunyuan_v1_moe", head_dim=8, moe_topk=2, **EXPERTS),
    "ernie4_5": text("ernie4_5", head_dim=8),
    "ernie4_5_moe": text("ernie4_5_moe", moe_num_experts=4, moe_k=2, moe_intermediate_size=16),
    "seed_oss": text("seed_oss", head_dim=8),
    "exaone4": text("exaone4", sliding_window=64, layer_types=["sliding_attention", "full_attention"]),
    "minimax": text("minimax", head_dim=8, block_size=16, **EXPERTS),
    "minimax_m2": text("minimax_m2", head_dim=8, **EXPERTS),
    "dots1": text(
        "dots1",
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=1,
        n_group=1,
        topk_group=1,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
    ),
    "arcee": text("arcee"),
    "apertus": text("apertus"),
    "helium": text("helium", head_dim=8),
    "bitnet": text("bitnet"),
    "cwm": text("cwm", head_dim=8, sliding_window=64),
    "diffllama": text("diffllama"),
    "nanochat": text("nanochat"),
    "jais2": text("jais2"),
    "recurrent_gemma": text("recurrent_gemma", num_hidden_layers=3, lru_width=32, attention_window_size=64),
    "rwkv": old("rwkv", hidden_size=32, num_hidden_layers=2, context_length=8192),
    "zamba2": text(
        "zamba2",
        layers_block_type=["mamba", "hybrid"],
        num_key_value_heads=4,
        mamba_d_state=8,
        mamba_headdim=16,
        n_mamba_heads=4,
        mamba_ngroups=1,
        chunk_size=16,
    ),
    "llama4_text": text("llama4_text", head_dim=8, intermediate_size_mlp=64, attention_chunk_size=64, **EXPERTS),
    "mistral3": multimodal(
        "mistral3",
        {"model_type": "mistral", "head_dim": 8, "sliding_window": None},
        {**VISION, "model_type": "pixtral", "head_dim": 8},
    ),
    "internvl": multimodal(
        "internvl", {"model_type": "qwen2"}, {**VISION, "image_size": [28, 28], "patch_size": [14, 14]}
    ),
    "llava": multimodal("llava", {"model_type": "llama"}, {**VISION, "model_type": "clip_vision_model"}),
    "llava_next": multimodal("llava_next", {"model_type": "llama"}, {**VISION, "model_type": "clip_vision_model"}),
    "idefics3": multimodal("idefics3", {"model_type": "llama"}, VISION),
    "smolvlm": multimodal("smolvlm", {"model_type": "llama"}, VISION),
    "paligemma": multimodal(
        "paligemma",
        {"model_type": "gemma", "head_dim": 8},
        {**VISION, "model_type": "siglip_vision_model"},
        projection_dim=32,
    ),
    "glm4v": multimodal(
        "glm4v",
        {"rope_parameters": {**MROPE, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]}},
        {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "out_hidden_size": 32,
            "image_size": 28,
            "patch_size": 14,
        },
    ),
    "lfm2_vl": multimodal(
        "lfm2_vl",
        {"model_type": "lfm2", "layer_types": ["conv", "full_attention"]},
        {**VISION, "num_patches": 4, "model_type": "siglip2_vision_model"},
    ),
    "llama4": multimodal(
        "llama4",
        {"head_dim": 8, "intermediate_size_mlp": 64, "attention_chunk_size": 64, **EXPERTS},
        {**VISION, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
    ),
}
"""Family -> what makes its configuration."""


@cache
def make_tokenizer() -> Any:
    """Return a byte-level tokenizer of `VOCABULARY` words, trained on this project's files, with SmolLM2's template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from sdft_cli.resources import resource_text

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    template = resource_text("templates", "chat", "smollm2.jinja")
    texts = [template, *(resource_text("templates", "eval", name) for name in ("general.jsonl", "questions.jsonl"))]
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[2], pad_token=special[2])
    fast.chat_template = template
    return fast


def make_model(family: str, folder: Path, dtype: str = "bfloat16") -> Path:
    """Write a random model of a family as a model's folder; its weights depend on nothing but the family."""
    from transformers import GenerationConfig

    from sdft_cli.engine.models.backend_transformers import model_class

    config = FAMILIES[family]()
    torch.manual_seed(0)
    model = model_class(config).from_config(config)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
