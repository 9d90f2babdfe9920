from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from sdft_cli.config import load_train_config
from sdft_cli.engine.plan.doctor import Finding, examine
from tests.families.matrix import sdft
from tests.families.tiny import make_model


def found(model: Path, *overrides: str, load: bool = False) -> dict[str, Finding]:
    config = load_train_config("cpu-demo", overrides)
    return {finding.what: finding for finding in examine(config, str(model), None, load)}


def test_a_sound_model(tmp_path: Path) -> None:
    model = make_model("granite", tmp_path / "granite")
    findings = found(model, "lora.rank=4", load=True)
    assert {finding.code for finding in findings.values()} == {0}
    assert findings["model"].text == "granite, GraniteForCausalLM, 8192 positions"
    assert findings["head"].text == "1024 words, scale 0.125"
    assert "14 layers" in findings["adapter"].text
    assert "turns end with <|im_end|>; calls: Hermes JSON" in findings["prompts"].text
    assert "packed" in findings["loaded"].text


def test_what_is_refused_has_its_sentence_and_its_code(tmp_path: Path) -> None:
    model = make_model("phi", tmp_path / "phi")
    findings = found(model)
    assert findings["adapter"].code == 2
    assert "[q_proj, k_proj, v_proj, dense, fc1, fc2]" in findings["adapter"].text
    assert findings["head"] == Finding("head", "1024 words, bias")
    assert found(tmp_path)["model"].code == 2
    done = sdft("doctor", "--model", model, "--profile", "cpu-demo")
    assert done.code == 2
    assert sdft("doctor", "--model", model, "--profile", "cpu-demo", "--set", "lora.target_modules=all-linear").right
