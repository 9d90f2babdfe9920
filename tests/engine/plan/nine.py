"""The configuration of Qwen3.5-9B, without its weights, and its shape with the default profile's adapter."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sdft_cli.config import load_train_config
from sdft_cli.engine.plan.model_shape import Shape, shape_of


def nine() -> Any:
    """Return it as transformers reads it."""
    from transformers import Qwen3_5Config

    rope = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25, "mrope_section": [11, 11, 10]}
    text = {
        "vocab_size": 248_320,
        "hidden_size": 4096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "full_attention_interval": 4,
        "max_position_embeddings": 262_144,
        "tie_word_embeddings": False,
        "rope_parameters": {**rope, "mrope_interleaved": True},
    }
    vision = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 4096}
    return Qwen3_5Config(text_config=text, vision_config=vision, tie_word_embeddings=False)


@lru_cache
def nine_shape() -> Shape:
    """Return its shape; making it takes seconds."""
    return shape_of(nine(), load_train_config("qwen3.5-9b-64k"))
