"""What is planted between the trunk and the logits is caught when the model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.config import load_train_config  # noqa: E402
from sdft_cli.engine.models.backend_transformers import PlainModel, TransformersBackend, attach_lora  # noqa: E402
from sdft_cli.engine.models.head_check import check_head  # noqa: E402
from sdft_cli.engine.models.load import load_backend, open_for_eval  # noqa: E402
from sdft_cli.errors import MachineError  # noqa: E402
from tests.engine.models.families import SETTINGS, make_model  # noqa: E402


def opened(model: Any) -> TransformersBackend:
    return TransformersBackend(PlainModel(model).eval(), torch.device("cpu"))


def planted(model: Any, change: Callable[[Any], Any]) -> Any:
    """Let a model's own forward pass change its logits."""
    own = model.forward

    def forward(*arguments: Any, **options: Any) -> Any:
        output = own(*arguments, **options)
        output.logits = change(output.logits)
        return output

    model.forward = forward
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", SETTINGS)
def test_every_family_agrees_with_itself(family: str, dtype: Any) -> None:
    backend = opened(make_model(family).to(dtype))
    before = torch.get_rng_state()
    check_head(backend)
    assert not backend.plain_head
    assert torch.equal(torch.get_rng_state(), before)


def one_word(logits: Any) -> Any:
    return logits + 0.5 * (torch.arange(logits.shape[-1]) == 5)


PLANTED: dict[str, Callable[[Any], Any]] = {
    "scale": lambda logits: logits * 1.1,
    "cap": lambda logits: 3 * torch.tanh(logits / 3),
    "bias": one_word,
    "fewer words": lambda logits: logits[..., :-1],
    "masked words": lambda logits: logits.index_fill(-1, torch.tensor([7]), torch.finfo(logits.dtype).min),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("what", PLANTED)
def test_what_is_planted_is_caught(what: str, dtype: Any) -> None:
    backend = opened(planted(make_model("llama").to(dtype), PLANTED[what]))
    with pytest.raises(MachineError, match=r"llama computes its logits in a way .* nats\): use"):
        check_head(backend)


@pytest.mark.parametrize("small", [1.001, 0.999])
def test_in_fp32_a_scale_of_a_thousandth_is_caught(small: float) -> None:
    with pytest.raises(MachineError, match="nats"):
        check_head(opened(planted(make_model("llama"), lambda logits: logits * small)))


def test_a_trunk_without_its_final_norm_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = opened(make_model("llama"))
    inner = backend.trunk
    norm = inner.norm
    monkeypatch.setattr(TransformersBackend, "trunk_pass", lambda self, **inputs: _without(inner, norm, inputs))
    with pytest.raises(MachineError, match="nats"):
        check_head(backend)


def _without(trunk: Any, norm: Any, inputs: dict[str, Any]) -> Any:
    trunk.norm = torch.nn.Identity()
    try:
        return trunk(**inputs)
    finally:
        trunk.norm = norm


def test_a_model_that_leaves_out_what_its_config_says_gets_the_plain_head() -> None:
    """As multimodal models do whose text config has a scale."""
    model = make_model("llama")
    model.config.logit_scale = 0.25
    backend = opened(model)
    assert backend.head.scale == 0.25
    check_head(backend)
    assert backend.plain_head
    assert (backend.head.scale, backend.head.softcap) == (1.0, None)


def test_modes_weights_and_the_adapter_are_left_alone() -> None:
    model = attach_lora(make_model("llama"), load_train_config("cpu-demo", ["lora.dropout=0.5"]))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    backend = TransformersBackend(model, torch.device("cpu"))
    before = {name: module.training for name, module in model.named_modules()}
    values = {name: value.clone() for name, value in model.state_dict().items()}
    check_head(backend)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())


def test_both_ways_of_loading_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForCausalLM

    make_model("llama").save_pretrained(tmp_path)
    config = load_train_config("cpu-demo", [], {"model": str(tmp_path)})
    load_backend(config, "transformers", str(tmp_path))
    open_for_eval(str(tmp_path), "float32", None, None)
    own = LlamaForCausalLM.forward

    def forward(self: Any, *arguments: Any, **options: Any) -> Any:
        output = own(self, *arguments, **options)
        output.logits = output.logits * 2
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    with pytest.raises(MachineError, match="nats"):
        load_backend(config, "transformers", str(tmp_path))
    with pytest.raises(MachineError, match="nats"):
        open_for_eval(str(tmp_path), "float32", None, None)


def test_a_model_that_cannot_be_run_is_one_sentence() -> None:
    model = planted(make_model("llama"), lambda logits: [][0])
    with pytest.raises(
        MachineError, match=r"^llama cannot be run by .* \(IndexError: list index out of range\): update"
    ):
        check_head(opened(model))
