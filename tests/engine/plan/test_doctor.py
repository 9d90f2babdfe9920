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
    llama = "lora.target_modules=[q_proj, o_proj]"
    findings = found(model, llama)
    assert findings["adapter"].code == 2
    assert "[q_proj, k_proj, v_proj, dense, fc1, fc2]" in findings["adapter"].text
    assert findings["head"] == Finding("head", "1024 words, bias")
    assert found(tmp_path)["model"].code == 2
    done = sdft("doctor", "--model", model, "--profile", "cpu-demo", "--set", llama)
    assert done.code == 2
    assert sdft("doctor", "--model", model, "--profile", "cpu-demo").right
    text = tmp_path / "text.jinja"
    text.write_text("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}")
    findings = {f.what: f for f in examine(load_train_config("cpu-demo"), str(model), str(text), False)}
    assert findings["prompts"].code == 3
    assert "drops the tools that are offered, tool calls" in findings["prompts"].text
