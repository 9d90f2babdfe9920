"""A random model of Qwen3.5's architecture and a byte tokenizer: the engine runs on them without any download."""

from __future__ import annotations

from typing import Any

import torch

from sdft_cli.config import TrainConfig
from sdft_cli.engine.kernels.cudnn import leave_cudnn_attention
from sdft_cli.engine.models.backend_transformers import TransformersBackend, attach_lora, model_class
from sdft_cli.engine.models.head_check import check_head
from sdft_cli.engine.models.modes import train_adapter_only
from sdft_cli.prompts.chat import ChatPrompts
from sdft_cli.prompts.teacher import load_teacher_template
from sdft_cli.resources import resource_text

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WORDS = 256 + len(SPECIAL)
LAYERS = 4
ON_CPU = {"hidden": 64, "heads": 4, "kv_heads": 2, "head": 32, "linear_heads": 2, "linear_head": 16}
ON_GPU = {"hidden": 1024, "heads": 4, "kv_heads": 1, "head": 256, "linear_heads": 8, "linear_head": 128}
"""Widths; on a GPU those of a head as in Qwen3.5-9B, since kernels depend on them."""


def small_config(sizes: dict[str, int], layers: int = LAYERS) -> Any:
    """Return a configuration of Qwen3.5 with a vision tower: three layers of linear attention, then a full one."""
    from transformers import Qwen3_5Config

    sections = [sizes["head"] // 32 * n for n in (2, 1, 1)]
    text = {
        "vocab_size": WORDS,
        "hidden_size": sizes["hidden"],
        "intermediate_size": 2 * sizes["hidden"],
        "num_hidden_layers": layers,
        "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["kv_heads"],
        "head_dim": sizes["head"],
        "linear_num_key_heads": sizes["linear_heads"],
        "linear_num_value_heads": 2 * sizes["linear_heads"],
        "linear_key_head_dim": sizes["linear_head"],
        "linear_value_head_dim": sizes["linear_head"],
        "full_attention_interval": 4,
        "max_position_embeddings": 8192,
        "eos_token_id": SPECIAL.index("<|im_end|>"),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e7,
            "partial_rotary_factor": 0.25,
            "mrope_interleaved": True,
            "mrope_section": sections,
        },
    }
    vision = {
        "depth": 1,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "out_hidden_size": sizes["hidden"],
    }
    return Qwen3_5Config(text_config=text, vision_config=vision, tie_word_embeddings=False)


def small_backend(config: TrainConfig, device: torch.device) -> TransformersBackend:
    """Return a random model with a fresh adapter as the configuration asks for, bf16 on a GPU and fp32 elsewhere.

    Raises:
        UsageError: a target of the adapter is not there.
        MachineError: its logits are not ours.
    """
    from transformers import GenerationConfig

    leave_cudnn_attention()
    found = small_config(ON_GPU if device.type == "cuda" else ON_CPU)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(found).from_config(found, dtype=torch.float32)
        model = (
            model.to(device, torch.bfloat16 if device.type == "cuda" else torch.float32).eval().requires_grad_(False)
        )
        model.generation_config = GenerationConfig(eos_token_id=found.get_text_config().eos_token_id)
        adapted = attach_lora(model, config)
    train_adapter_only(adapted)
    backend = TransformersBackend(adapted, device)
    check_head(backend)
    return backend


def small_prompts() -> ChatPrompts:
    """Return the prompts of that model: one token for each byte, ChatML with tools."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {token: place for place, token in enumerate((*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())))}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL[2], pad_token=SPECIAL[0])
    fast.chat_template = resource_text("templates", "chat", "smollm2.jinja")
    return ChatPrompts(fast, load_teacher_template("expert_reference"))
