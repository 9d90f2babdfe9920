"""A model whose calls nothing reads back: train, gate and eval say so before they start, and leave such scores out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")

from sdft_cli.config import EvalConfig, load_train_config
from sdft_cli.engine.train.opening import Job, load
from sdft_cli.records import Dataset
from sdft_cli.report import evaluation, terminal
from sdft_cli.stages.evaluate import run_evaluation
from sdft_cli.stages.gate import measure_gate
from tests.engine.prepared import prepared

WARNING = (
    "WARNING: tool calls cannot be scored, and scores about them are left out: no syntax that sdft knows reads back "
    'what the chat template writes: <@> {"name": "zebra_second", "arguments": {}} </@>'
)


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "unknown-syntax"
    shutil.copytree(tiny_model, folder)
    template = folder / "chat_template.jinja"
    text = template.read_text(encoding="utf-8")
    template.write_text(text.replace("<tool_call>", "<@>").replace("</tool_call>", "</@>"), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def data(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepared(model, tmp_path_factory.mktemp("data"), 8, 0.4)


def test_training_says_it_before_the_model_is_loaded(model: Path, data: Dataset, tmp_path: Path) -> None:
    said: list[str] = []
    load(Job(load_train_config("cpu-demo", [f"model={model}"]), data, tmp_path / "run"), said.append)
    assert said.count(WARNING) == 1
    assert said.index(WARNING) < next(i for i, text in enumerate(said) if "refix sharing" in text)


def test_the_gate_says_it_and_judges_the_likelihood(
    model: Path, data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_train_config("cpu-demo", [f"model={model}", "gate.records=4", "gate.max_new_tokens=2"])
    found = measure_gate(config, data)
    assert WARNING in " ".join(capsys.readouterr().err.split())
    assert "agreement" not in found.lifts


def test_the_evaluation_says_it_and_leaves_such_scores_out(
    model: Path, data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run_evaluation(str(model), data, EvalConfig(limit=4, max_new_tokens=4, questions=0, general=0))
    assert WARNING in " ".join(capsys.readouterr().err.split())
    (contender,) = found["contenders"].values()
    summary = contender["summary"]
    assert summary["tool_turns"] == found["facts"]["tool_turns"] > 0
    about_calls = {key for key in summary if key.startswith("tool_") and key != "tool_turns"}
    assert {summary[key] for key in (*about_calls, "unasked_call_share")} == {None}
    assert summary["expert_nll_per_token"] > 0
    assert found["facts"]["call_syntax"] is None
    assert found["facts"]["calls_not_scored"] in WARNING
    assert {item["valid"] for item in contender["items"] if item["is_tool_turn"]} == {None}
    json.dumps(found, allow_nan=False)
    terminal.stdout().print(evaluation.report(found))
    assert "Tool calls could not be scored: no syntax" in " ".join(capsys.readouterr().out.split())
