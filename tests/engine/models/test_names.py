"""What of a Hub repository is downloaded."""

from __future__ import annotations

from huggingface_hub.utils import filter_repo_objects

from sdft_cli.engine.models.names import NOT_NEEDED

NEEDED = [
    *("config.json", "generation_config.json", "model.safetensors.index.json"),
    *("model-00001-of-00002.safetensors", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "tekken.json"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/rag.jinja"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "spiece.model"),
    *("README.md", "LICENSE"),
]
OTHERS = [
    *("consolidated.safetensors", "consolidated-00001-of-00003.safetensors", "consolidated.00.pth"),
    *("original/params.json", "original/consolidated.00.pth", "original/tokenizer.model"),
    *("onnx/model_q4.onnx", "onnx/model.onnx_data", "model.onnx", "openvino/openvino_model.xml"),
    *("openvino/openvino_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "flax_model.msgpack"),
    *("tf_model.h5", "rust_model.ot", "model-Q4_K_M.gguf", "gguf/model.gguf", "metal/model.bin"),
    *("coreml/model.mlpackage/Manifest.json", "last.ckpt", "runs/Jan01/events.out"),
    *("checkpoint-500/model.safetensors", "figures/plot.png"),
]


def test_other_forms_of_the_weights_are_left_out_and_nothing_that_is_needed() -> None:
    assert list(filter_repo_objects([*NEEDED, *OTHERS], ignore_patterns=NOT_NEEDED)) == NEEDED
