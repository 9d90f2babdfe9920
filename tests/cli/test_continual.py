"""Two datasets one after the other, by the functions of the commands: what is kept of the first."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")

from sdft_cli.cli.main import app
from sdft_cli.config import EvalConfig, load_train_config
from sdft_cli.engine.train.loop import Silent
from sdft_cli.engine.train.opening import Job
from sdft_cli.engine.train.run import start_training
from sdft_cli.records import read_dataset
from sdft_cli.records.json_files import write_json
from sdft_cli.stages.evaluate import run_evaluation
from tests.engine.prepared import prepared

SHORT = [
    *("lora.rank=4", "optim.turns_per_step=2", "optim.max_steps=2", "optim.warmup_steps=0", "heldout.every=null"),
    *("gate.action=off", "rehearse=false", "backend=transformers", "objective=sft"),
]
CONFIG = EvalConfig(max_new_tokens=3, general=0, questions=0, limit=3, resamples=200)


@pytest.mark.slow
def test_runs_that_go_on_from_each_other_make_a_matrix(tiny_model: Path, tmp_path: Path) -> None:
    sets = {}
    for name, sessions in (("one", 8), ("two", 12)):
        prepared(tiny_model, tmp_path / f"of-{name}", sessions, 0.4).path.rename(tmp_path / name)
        sets[name] = read_dataset(tmp_path / name)
    runs: list[Path] = []
    for name, data in sets.items():
        begins = [f"init_adapter={runs[-1]}"] if runs else []
        config = load_train_config("cpu-demo", [*SHORT, *begins], {"model": str(tiny_model)})
        runs.append(tmp_path / f"run-{name}")
        start_training(Job(config, data, runs[-1]), lambda text: None, lambda: nullcontext(Silent()))
        for other, its in sets.items():
            write_json(runs[-1] / f"eval-{other}.json", run_evaluation(str(runs[-1]), its, CONFIG))
    done = CliRunner().invoke(app, ["compare", *map(str, runs), "--matrix", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["notes"] == []
    assert found["datasets"] == ["one", "two"]
    values = [run["values"] for run in found["runs"]]
    assert values[0][0] < found["base"][0]
    assert values[1][1] < found["base"][1]
    assert found["backward_transfer"] == pytest.approx(values[0][0] - values[1][0])
