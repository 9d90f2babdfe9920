from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sdft_cli.cli.main import app
from sdft_cli.errors import DataError, UsageError
from sdft_cli.evaluation.matrix import forgetting_matrix, read_stage
from sdft_cli.report.comparison import matrix_report
from sdft_cli.report.terminal import stdout
from tests.evaluation.documents import document

SKILL = {("one", "a"): 0.6, ("two", "a"): 0.2, ("two", "b"): 0.5, ("three", "a"): 0.1, ("three", "b"): 0.4}
SKILL |= {("one", "b"): 0.1, ("three", "c"): 0.7}
"""Quality of each run on each dataset; none of one and two on c."""
CHAIN = {"one": None, "two": "one", "three": "two"}


def write_runs(folder: Path, chain: dict[str, str | None] = CHAIN) -> list[Path]:
    for (run, dataset), quality in SKILL.items():
        found = document(tuned=("tuned", quality))
        found["dataset"] = {"name": dataset, "source": {"name": dataset}, "validation_hash": dataset}
        found["adapter"] = {"name": "adapter", "sha256": run}
        (folder / run).mkdir(exist_ok=True)
        (folder / run / f"eval-{dataset}.json").write_text(json.dumps(found))
    for (run, before), dataset in zip(chain.items(), "abc", strict=True):
        info = {"dataset": {"name": dataset}, "init_adapter": {"sha256": before} if before else None}
        (folder / run / "run.json").write_text(json.dumps(info))
    return [folder / run for run in chain]


def nll(quality: float, seed: int) -> float:
    """The measure of `documents.contender`, per token of ten."""
    items = document(tuned=("tuned", quality))["contenders"]["tuned" if seed else "base"]["items"]
    return sum(item["nll"] for item in items) / (10 * len(items))


def matrix(paths: list[Path], skill: str = "expert_nll_per_token") -> dict[str, Any]:
    return forgetting_matrix([read_stage(path) for path in paths], skill)


def test_the_matrix_and_its_backward_transfer_by_hand(tmp_path: Path) -> None:
    found = matrix(write_runs(tmp_path))
    assert found["datasets"] == ["a", "b", "c"]
    assert found["base"] == pytest.approx([nll(0.0, 0)] * 3)
    for run in found["runs"]:
        for dataset, value in zip("abc", run["values"], strict=True):
            quality = SKILL.get((run["name"], dataset))
            assert value == (None if quality is None else pytest.approx(nll(quality, 1)))
    # NLL is 0.5 lower per unit of quality: it rose by 0.25 on a and by 0.05 on b. Better is positive.
    assert found["changes"]["a"]["value"] == pytest.approx(0.25)
    assert found["changes"]["b"]["value"] == pytest.approx(0.05)
    assert found["backward_transfer"] == pytest.approx(-0.15)
    assert found["changes"]["a"]["low"] == pytest.approx(0.25)  # the same noise on both sides
    assert found["notes"] == []
    prose = matrix(write_runs(tmp_path), "prose_chrf")
    assert prose["backward_transfer"] == pytest.approx((-5 - 1) / 2)


def test_it_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stdout().print(matrix_report(matrix(write_runs(tmp_path, {"two": None, "one": None, "three": "two"}))))
    shown = capsys.readouterr().out
    assert "after three" in shown
    assert "Backward transfer +0.050" in shown  # a: 0.05 worse, b: 0.15 better
    assert "Note: one did not begin with the adapter of two" in shown


def test_the_command_prints_it(tmp_path: Path) -> None:
    paths = [str(path) for path in write_runs(tmp_path)]
    done = CliRunner().invoke(app, ["compare", *paths, "--matrix", "--json"])
    assert json.loads(done.stdout) == matrix([Path(path) for path in paths])
    assert "Backward transfer -0.150" in CliRunner().invoke(app, ["compare", *paths, "--matrix"]).stdout
    refused = CliRunner().invoke(app, ["compare", *paths, "--matrix", "--html", str(tmp_path / "x.html")])
    assert refused.exit_code == 2


def test_what_makes_no_matrix_is_refused(tmp_path: Path) -> None:
    paths = write_runs(tmp_path)
    with pytest.raises(UsageError, match="needs runs on two datasets"):
        matrix(paths[:1])
    (paths[0] / "eval-b.json").unlink()
    with pytest.raises(UsageError, match="one lacks b: run `sdft eval"):
        matrix([paths[1], paths[0]])
    with pytest.raises(UsageError, match="has no better side"):
        matrix(paths, "entropy")
    with pytest.raises(UsageError, match="is no run"):
        read_stage(tmp_path)
    (paths[2] / "eval.json").write_text((paths[2] / "eval-c.json").read_text())
    with pytest.raises(DataError, match="two evaluations on c"):
        read_stage(paths[2])
    (paths[2] / "eval.json").unlink()
    other = json.loads((paths[2] / "eval-a.json").read_text())
    (paths[2] / "eval-a.json").write_text(json.dumps({**other, "adapter": {"name": "adapter", "sha256": "new"}}))
    with pytest.raises(DataError, match="trained again"):
        read_stage(paths[2])
    other["config"]["max_new_tokens"] = 3
    (paths[2] / "eval-a.json").write_text(json.dumps(other))
    with pytest.raises(DataError, match="three on a was evaluated with other settings"):
        matrix(paths)
    for file in paths[1].glob("eval*.json"):
        file.unlink()
    with pytest.raises(UsageError, match="was not evaluated"):
        read_stage(paths[1])
