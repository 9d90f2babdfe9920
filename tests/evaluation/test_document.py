from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest

from sdft_cli.errors import DataError, UsageError
from sdft_cli.evaluation.document import of_drift, read_evaluation
from tests.evaluation.documents import document


def test_files_and_folders_are_read(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "eval.json").write_text(json.dumps(document(tuned=("tuned", 0.2))))
    (tmp_path / "other.json").write_text(json.dumps(document(tuned=("tuned", 0.3))))
    assert read_evaluation(run)[0] == read_evaluation(run / "eval.json")[0] == "run"
    assert read_evaluation(tmp_path / "other.json")[0] == "other"
    (run / "eval-best.json").write_text(json.dumps(document(tuned=("tuned", 0.3))))
    assert read_evaluation(run / "eval-best.json")[0] == "run-best"
    (tmp_path / "study.json").write_text(json.dumps({k: v for k, v in document().items() if k != "dataset"}))
    with pytest.raises(DataError, match="this version"):
        read_evaluation(tmp_path / "study.json")
    with pytest.raises(UsageError, match="give run folders"):
        read_evaluation(tmp_path / "nothing")
    (run / "run.json").write_text("{}")
    (run / "eval.json").unlink()
    with pytest.raises(UsageError, match="run `sdft eval"):
        read_evaluation(run)
    (tmp_path / "old.json").write_text("{}")
    with pytest.raises(DataError, match="this version"):
        read_evaluation(tmp_path / "old.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DataError, match=r"not valid JSON: run `sdft eval` again\.$"):
        read_evaluation(tmp_path / "broken.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(DataError, match=r"no JSON object: run `sdft eval` again\.$"):
        read_evaluation(tmp_path / "list.json")


def test_an_evaluation_of_an_earlier_adapter_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "whole" / "run"
    (run / "adapter").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    (run / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    found = {**document(tuned=("tuned", 0.2)), "adapter": {"name": "adapter", "sha256": sha256(b"weights").hexdigest()}}
    for place in (run, run.parent):
        (place / "eval.json").write_text(json.dumps(found))
        read_evaluation(place)
    (run / "adapter" / "adapter_model.safetensors").write_bytes(b"trained on")
    for place in (run, run.parent):
        with pytest.raises(DataError, match=r"is of an earlier adapter of this run: run `sdft eval` again\.$"):
            read_evaluation(place)
    (run.parent.parent / "elsewhere.json").write_text(json.dumps(found))
    read_evaluation(run.parent.parent / "elsewhere.json")


def test_single_tokens_of_the_drift_are_not_kept() -> None:
    row = {"prompt_id": "p", "kind": "k", "tokens": 2, "kl": 3.0, "same_top": 1, "entropy": 4.0}
    found = of_drift([{**row, "token_kl": [1.0, 2.0]}])
    assert found["items"] == [row]
    assert found["summary"]["kl_p95_of_tokens"] == pytest.approx(1.95)
    assert found["summary"]["prompts"] == 1
