from __future__ import annotations

import re
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from sdft_cli.config import load_train_config  # noqa: E402
from sdft_cli.engine.models.adapters import lora_layers  # noqa: E402
from sdft_cli.engine.models.backend_transformers import attach_lora, empty_model  # noqa: E402
from sdft_cli.engine.models.targets import adaptable, hits, suggested, target_names, targets_told  # noqa: E402
from sdft_cli.errors import UsageError  # noqa: E402
from tests.families.tiny import FAMILIES  # noqa: E402

LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SUGGESTED = {
    "llama": LLAMA,
    "phi": ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"),
    "phi3": ("o_proj", "qkv_proj", "gate_up_proj", "down_proj"),
    "opt": ("k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2"),
    "gpt_neox": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    "falcon": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    "mamba": ("in_proj",),  # its kernels read out_proj, x_proj and dt_proj themselves
    "gemma3": LLAMA,  # the tower has q_proj and out_proj, too
    "phimoe": ("q_proj", "k_proj", "v_proj", "o_proj"),  # its router is a linear layer
    "deepseek_v3": ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
}
"""`deepseek_v3`: peft takes gate_proj, up_proj and down_proj for the routed experts."""


def empty(family: str) -> Any:
    return empty_model(FAMILIES[family]())


@pytest.mark.parametrize("family", SUGGESTED)
def test_suggested_are_the_linear_layers_of_the_trunk(family: str) -> None:
    model = empty(family)
    assert sorted(suggested(model)) == sorted(SUGGESTED[family])
    assert target_names(model, "all-linear") == suggested(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_suggested_is_what_peft_adapts(family: str) -> None:
    if family in ("gpt2", "rwkv"):
        pytest.skip("refused")
    model = empty(family)
    expected = set(hits(model, suggested(model)))
    assert expected <= adaptable(model).keys()
    assert not [name for name in expected if re.search(r"vision|visual|projector|lm_head|\.(gate|router)$", name)]
    config = load_train_config("cpu-demo", ["lora.target_modules=all-linear", "lora.rank=2"])
    with torch.device("meta"):
        assert lora_layers(attach_lora(model, config).get_base_model()).keys() == expected


def test_a_missing_name_is_refused_with_the_familys_own() -> None:
    with pytest.raises(UsageError, match=r"named o_proj, gate_proj, .*=\[q_proj, k_proj, v_proj, dense"):
        target_names(empty("phi"), LLAMA)


@pytest.mark.parametrize(
    ("family", "name"),
    [("llama", "self_attn"), ("mamba", "dt_proj"), ("deepseek_v3", "down_proj"), ("gpt_neox", "lm_head")],
)
def test_what_cannot_be_adapted_rightly_is_refused(family: str, name: str) -> None:
    with pytest.raises(UsageError, match=r"would not be trained|is the output head"):
        target_names(empty(family), [name])


def test_the_experts_that_no_adapter_reaches_are_counted() -> None:
    model = empty("mixtral")
    first, second = targets_told(model, "all-linear")
    assert first == "LoRA on: q_proj, k_proj, v_proj, o_proj (8 layers)"
    # Two layers of 4 experts with gate, up and down of 64 x 32.
    assert f"{2 * 4 * 3 * 64 * 32:,} of the trunk's" in second
    assert len(targets_told(empty("llama"), LLAMA)) == 1


def test_what_is_no_causal_language_model_is_refused_without_a_traceback() -> None:
    from transformers import LlamaConfig, T5Config

    with pytest.raises(
        UsageError, match="t5 is no model that transformers loads as AutoModelForCausalLM: use a causal"
    ):
        empty_model(T5Config(d_model=32, num_layers=1))
    wrong = LlamaConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    wrong.hidden_act = "no_such_function"
    with pytest.raises(UsageError, match=r"builds no llama model from this config \(KeyError: .*no_such_function"):
        empty_model(wrong)
