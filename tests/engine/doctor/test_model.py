from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from sdft_cli.config import load_train_config
from sdft_cli.engine.doctor.examine import Question, examine
from sdft_cli.engine.doctor.finding import Finding
from sdft_cli.engine.doctor.model import examine_model
from tests.families.matrix import sdft
from tests.families.tiny import make_model


def found(model: Path, *overrides: str, template: Path | None = None) -> dict[str, Finding]:
    config = load_train_config("cpu-demo", overrides)
    findings = examine_model(config, str(model), None if template is None else str(template))
    return {finding.what: finding for finding in findings}


def test_a_sound_model(tmp_path: Path) -> None:
    model = make_model("granite", tmp_path / "granite")
    findings = found(model, "lora.rank=4")
    assert {finding.level for finding in findings.values()} == {"ok"}
    assert findings["model"].text == "granite, GraniteForCausalLM, 8192 positions"
    assert findings["head"].text == "1024 words, scale 0.125"
    assert "14 layers" in findings["targets"].text
    assert "turns end with <|im_end|>; calls: Hermes JSON" in findings["prompts"].text
    asked = Question(load_train_config("cpu-demo", ["lora.rank=4"]), str(model), load=True)
    loaded = {finding.what: finding for finding in examine(asked)}
    assert {finding.level for finding in loaded.values()} == {"ok"}
    assert loaded["prefix sharing"].text.startswith("packed")
    assert "on 14 layers" in loaded["adapter"].text


def test_what_is_refused_has_its_sentence_and_its_code(tmp_path: Path) -> None:
    model = make_model("phi", tmp_path / "phi")
    llama = "lora.target_modules=[q_proj, o_proj]"
    findings = found(model, llama)
    assert findings["targets"].code == 2
    assert "[q_proj, k_proj, v_proj, dense, fc1, fc2]" in findings["targets"].text
    assert findings["head"] == Finding("head", "1024 words, bias")
    assert found(tmp_path)["model"].code == 2
    assert sdft("doctor", "--model", model, "--profile", "cpu-demo", "--set", llama).code == 2
    assert sdft("doctor", "--model", model, "--profile", "cpu-demo").right
    text = tmp_path / "text.jinja"
    text.write_text("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}")
    findings = found(model, template=text)
    assert findings["prompts"].code == 3
    assert "drops the tools that are offered, tool calls" in findings["prompts"].text
