from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sdft_cli.errors import DataError, UsageError
from sdft_cli.evaluation.compare import compare, trade_off
from tests.conftest import ROOT
from tests.evaluation.documents import document


def test_runs_are_put_side_by_side() -> None:
    one, two = document(tuned=("tuned", 0.2)), document(tuned=("tuned", 0.6))
    found = compare([("sdft", one), ("sft", two)])
    assert list(found["contenders"]) == ["base", "sdft", "sft"]
    assert set(found["differences"]) == {"sdft - base", "sft - base", "sft - sdft"}
    assert found["differences"]["sdft - base"] == one["differences"]["tuned - base"]
    items = [found["contenders"][n]["items"] for n in ("sft", "sdft")]
    expected = sum(a["nll"] - b["nll"] for a, b in zip(*items, strict=True)) / 240
    assert found["differences"]["sft - sdft"]["expert_nll_per_token"]["value"] == pytest.approx(expected)


def test_models_of_one_evaluation_are_named_apart() -> None:
    both = document(tuned=("tuned", 0.2), sft=("control", 0.4))
    assert list(compare([("r", both)])["contenders"]) == ["base", "r: tuned", "r: sft"]


def test_gains_and_losses_have_their_signs() -> None:
    found = compare([("a", document(tuned=("tuned", 0.2))), ("b", document(tuned=("tuned", 0.6)))])
    a, b = trade_off(found, "expert_nll_per_token", "drift_kl")
    assert (a["name"], b["name"]) == ("a", "b")
    gap = found["differences"]["b - base"]["expert_nll_per_token"]
    assert b["skill"] == {"value": -gap["value"], "low": -gap["high"], "high": -gap["low"]}
    assert b["skill"]["value"] > a["skill"]["value"] > 0
    assert b["forgetting"]["value"] > a["forgetting"]["value"] > 0
    shares = trade_off(found, "tool_named_share", "questions_right")
    assert shares[0]["skill"]["value"] == found["differences"]["a - base"]["tool_named_share"]["value"]
    assert shares[0]["forgetting"]["value"] == 0
    for key in ("nothing", "entropy", "kl_p95_of_tokens"):
        with pytest.raises(UsageError, match="cannot be plotted"):
            trade_off(found, key, "drift_kl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["dataset"].update(validation_hash="other"), "on another dataset"),
        (lambda d: d["config"].update(max_new_tokens=3), "with other settings"),
        (lambda d: d["contenders"]["base"]["items"][0].update(nll=1.0), "against another base"),
        (lambda d: d["contenders"].pop("base"), "against another base"),
        (lambda d: d["model"].update(base="other"), "against another base"),
    ],
)
def test_what_was_not_measured_alike_is_refused(change: Any, message: str) -> None:
    one, two = document(tuned=("tuned", 0.2)), json.loads(json.dumps(document(tuned=("tuned", 0.2))))
    change(two)
    with pytest.raises(DataError, match=f"second was evaluated {message}"):
        compare([("first", one), ("second", two)])


def test_a_base_that_another_machine_rounded_is_the_same_base() -> None:
    one, two = document(tuned=("tuned", 0.2)), json.loads(json.dumps(document(tuned=("tuned", 0.3))))
    for item in two["contenders"]["base"]["items"]:
        item["nll"] *= 1 + 1e-5
        item["text"] += " "
    assert list(compare([("a", one), ("b", two)])["contenders"]) == ["base", "a", "b"]


def test_two_models_and_two_names_are_needed() -> None:
    one = document(tuned=("tuned", 0.2))
    with pytest.raises(UsageError, match="at least two"):
        compare([("a", one)])
    with pytest.raises(UsageError, match="would be called a"):
        compare([("a", one), ("a", one)])


def test_the_command_loads_no_torch(tmp_path: Path) -> None:
    for name, quality in (("a", 0.2), ("b", 0.6)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "eval.json").write_text(json.dumps(document(tuned=("tuned", quality))))
    heavy = ["torch", "transformers", "peft", "datasets", "accelerate", "huggingface_hub", "pyarrow", "pandas"]
    code = (
        "import sys\nfrom sdft_cli.cli.main import app\n"
        "try: app(['compare', 'a', 'b', '--html', 'page.html'])\nexcept SystemExit as e: assert e.code == 0\n"
        f"print([m for m in {heavy} if m in sys.modules], file=sys.stderr)"
    )
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "COLUMNS": "120", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines()[-1] == "[]"
    assert "gain: expert_nll_per_token" in done.stdout
    assert (tmp_path / "page.html").is_file()
