from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.config import load_train_config  # noqa: E402
from sdft_cli.engine.models.load import choose_backend  # noqa: E402
from sdft_cli.engine.plan import assumed as module  # noqa: E402
from sdft_cli.engine.plan.assumed import assume, planned_backend, planned_decoding, planned_weights  # noqa: E402
from sdft_cli.engine.plan.cards import find_gpu  # noqa: E402
from sdft_cli.engine.plan.memory import Lengths, step_memory  # noqa: E402
from sdft_cli.engine.plan.plan import on_backend, plan_of  # noqa: E402
from sdft_cli.errors import UsageError  # noqa: E402
from sdft_cli.records import RecordRow  # noqa: E402
from tests.engine.plan.nine import nine_shape  # noqa: E402

H100 = find_gpu("h100-80gb")


def installed(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    monkeypatch.setattr(module, "has_package", lambda name: name in packages)


def test_the_backend_of_this_machine_is_the_one_that_train_takes() -> None:
    for model_type in ("llama", "qwen3_5", "nemotron_h"):
        assert planned_backend("auto", model_type, elsewhere=False) == choose_backend("auto", model_type)


def test_the_backend_of_another_machine_is_assumed_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    name, why = planned_backend("auto", "qwen3_5", elsewhere=True)
    assert name == "transformers"
    assert why == "assumed: unsloth is not installed here; --backend plans another"
    installed(monkeypatch, "unsloth")
    assert planned_backend("auto", "qwen3_5", elsewhere=True)[0] == "unsloth"  # there is a GPU over there
    name, why = planned_backend("auto", "nemotron_h", elsewhere=True)
    assert name == "transformers"
    assert "unsloth is not known to support nemotron_h" in why
    assert planned_backend("unsloth", "nemotron_h", elsewhere=True) == ("unsloth", "as asked")


def test_sampling_weights_follow_the_rule_of_the_run() -> None:
    """A copy of 13.8 GB fits in half of what is free on 80 GB, and not on 40."""
    config = load_train_config("qwen3.5-9b-64k")
    assert config.rollout.weights == "auto"
    found, told = planned_weights(config, nine_shape(), H100)
    assert found == "merged"
    assert "13.82 GB, fits in half of the 61.28 GB" in told
    assert planned_weights(config, nine_shape(), find_gpu("a100-40gb"))[0] == "adapter"
    assert planned_weights(config, nine_shape(), None)[0] == "merged"
    four = load_train_config("qwen3.5-9b-64k", ["load_in_4bit=true"])
    assert planned_weights(four, nine_shape(), H100)[0] == "adapter"
    merged = four.rollout.model_copy(update={"weights": "merged"})
    with pytest.raises(UsageError, match="quantised"):
        planned_weights(four.model_copy(update={"rollout": merged}), nine_shape(), H100)


def test_decoding_is_what_the_engine_would_do() -> None:
    config = load_train_config("qwen3.5-9b-64k")
    assert planned_decoding(config, None, H100)[0]
    assert not planned_decoding(config, None, None)[0]
    assert planned_decoding(config, "it attends itself", H100) == (
        False,
        "decoding: kernel by kernel (it attends itself)",
    )
    assert not planned_decoding(load_train_config("cpu-demo", ["rollout.graphs=off"]), None, H100)[0]


def test_kernels_are_assumed_elsewhere_and_looked_for_here(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_train_config("qwen3.5-9b-64k", ["backend=transformers"])

    def told(elsewhere: bool, fused: bool | None) -> tuple[bool, str]:
        found = assume(config, nine_shape(), "qwen3_5", H100, elsewhere, fused)
        return found.engine.fused, next(t for t in found.told if t.startswith("gated delta rule"))

    installed(monkeypatch)
    there, sentence = told(True, None)
    assert there
    assert sentence == "gated delta rule: fused kernels (the extra gpu), assumed; --no-fused plans without"
    here, sentence = told(False, None)
    assert not here
    assert "transformers' reference, without fused kernels, what is installed here" in sentence
    assert told(True, False)[0] is False
    installed(monkeypatch, "fla")
    assert told(False, None)[0]


def plan(*overrides: str) -> dict[str, Any]:
    config = load_train_config("qwen3.5-9b-64k", ["optim.max_steps=1", *overrides])
    rows = [RecordRow("s/0", "s", 0, 20_000, 20_400, 300, False)]
    assumed = assume(config, nine_shape(), "qwen3_5", H100, True, None)
    return plan_of(rows, nine_shape(), config, "none", assumed, H100, heldout=rows)


def test_unsloth_keeps_the_inputs_of_layers_in_host_memory() -> None:
    ours, theirs = plan("backend=transformers"), plan("backend=unsloth")
    assert (ours["backend"], theirs["backend"]) == ("transformers", "unsloth")
    one, other = ({p["name"]: p["parts"] for p in found["memory"]["phases"]} for found in (ours, theirs))
    assert one["student and backward"]["layer inputs"] == (20_000 + 8_192) * 2 * 4096 * 32
    assert "layer inputs" not in other["student and backward"]


def test_vllm_takes_its_share_of_the_card() -> None:
    config = load_train_config("qwen3.5-9b-64k", ["backend=unsloth", "fast_inference=true"])
    assumed = assume(config, nine_shape(), "qwen3_5", H100, True, None)
    assert assumed.engine.graphs
    assert not assumed.engine.merged
    memory = step_memory([Lengths(20_000, 20_400, 8_192)], nine_shape(), config, "none")
    rollout = on_backend(memory, nine_shape(), config, assumed, H100).phases[0]
    share = config.fast_inference_memory * 80 * 2**30
    assert rollout.parts["frozen weights"] + rollout.parts["vLLM's cache"] == pytest.approx(share)
    assert "key-value cache" not in rollout.parts
