"""`sdft run` as a user runs it, on a tiny model: whole, stopped, killed, resumed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdft_cli.records.folders import sha256_of
from sdft_cli.records.json_files import read_json
from sdft_cli.traces.examples import write_examples
from tests.conftest import ROOT

Run = Callable[..., subprocess.CompletedProcess[str]]
PROJECT = """
source: sessions
model: {model}
prepare: {{max_rollout_tokens: 256, teacher_template: again, validation_fraction: 0.3}}
train:
  profile: cpu-demo
  gate: {{action: {gate}, records: 4, max_new_tokens: 4}}
  lora: {{rank: 4}}
  rollout: {{max_new_tokens: 4, start_tokens: null}}
  heldout: {{every: null}}
  checkpoint: {{every: 2}}
  optim: {{max_steps: 5, turns_per_step: 2}}
merge: {{dtype: float32, prompts: 2}}
eval: {{max_new_tokens: 4, general: 2, drift_tokens: 2, questions: 2, question_tokens: 2, resamples: 10}}
"""
ADAPTER = Path("run") / "adapter" / "adapter_model.safetensors"
STAGES = ["prepare", "plan", "gate", "train", "merge", "eval", "report"]


def make_project(folder: Path, model: Path, gate: str = "off") -> None:
    write_examples(folder / "sessions", 6)
    (folder / "sdft.yaml").write_text(PROJECT.format(model=model, gate=gate))


def stages(folder: Path) -> dict[str, Any]:
    return {stage["name"]: stage for stage in read_json(folder / "sdft-run.json", "")["stages"]}


@pytest.mark.slow
def test_a_whole_run_is_one_folder_with_one_manifest_and_is_not_done_twice(
    sdft: Run, tmp_path: Path, tiny_model: Path
) -> None:
    make_project(tmp_path, tiny_model)
    done = sdft("run", "--max-steps", "3")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "sessions"
    names = {path.name for path in folder.iterdir()}
    assert names == {"data", "plan.json", "run", "eval.json", "report.html", "sdft-run.json"}
    assert [name for name in STAGES if f"/7 {name}: " in done.stderr] == STAGES
    assert done.stderr.count("Settings: sdft.yaml\n") == 1
    assert "Merge certificate" in done.stdout
    found = stages(folder)
    assert list(found) == STAGES
    status = {name: stage["status"] for name, stage in found.items()}
    assert status == dict.fromkeys(STAGES, "finished") | {"gate": "skipped"}
    for stage in found.values():
        assert stage["started"] <= stage["ended"]
        for path, sha256 in stage["outputs"].items():
            assert sha256_of(folder / path) == sha256
    manifest = read_json(folder / "sdft-run.json", "")
    assert manifest["settings"]["train"]["optim"]["max_steps"] == 3  # the option goes before the file
    assert manifest["settings"]["prepare"]["max_seq_tokens"] == 8192  # those of training
    assert manifest["settings"]["prepare"]["max_rollout_tokens"] == 256
    assert {"sdft", "python", "torch", "transformers", "peft"} <= manifest["versions"].keys()
    assert "<html" in (folder / "report.html").read_text()

    again = sdft("run")
    assert again.returncode == 2
    assert "--resume" in again.stderr
    wrong = sdft("run", "session", "--out", folder, "--overwrite")
    assert wrong.returncode == 2
    assert "did you mean sessions?" in wrong.stderr
    assert (folder / ADAPTER).is_file()  # nothing was deleted for a run that cannot begin
    written = {path: path.stat().st_mtime_ns for path in (folder / ADAPTER, folder / "eval.json", folder / "data")}
    (folder / "report.html").unlink()
    done = sdft("run", "--resume", "--json")  # --max-steps is remembered
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [stage["name"] for stage in told["stages"]] == STAGES
    assert told["evaluation"]["contenders"].keys() == {"base", "tuned"}
    assert done.stderr.count("done before") == 6
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert (folder / "report.html").is_file()

    other = sdft("run", "--resume", "--set", "optim.learning_rate=1e-5")
    assert other.returncode == 2
    assert "started with optim.learning_rate=0.002" in other.stderr
    project = (tmp_path / "sdft.yaml").read_text()
    (tmp_path / "sdft.yaml").write_text(project.replace("validation_fraction: 0.3", "validation_fraction: 0.5"))
    other = sdft("run", "--resume")
    assert other.returncode == 2
    assert "The settings of prepare are others" in other.stderr
    (tmp_path / "sdft.yaml").write_text(project.replace("questions: 2", "questions: 1"))
    write_examples(tmp_path / "sessions" / "more", 1, seed=1)
    done = sdft("run", "--resume", "--max-steps", "4")
    assert done.returncode == 2  # the profile's rate falls to 0 behind the last step
    assert "optim.max_steps" in done.stderr
    merged = folder / "run" / "merged" / "model.safetensors"
    weights = sha256_of(merged)
    merged.unlink()
    done = sdft("run", "--resume")
    assert done.returncode == 0, done.stderr
    assert "The sessions have changed since" in done.stderr
    assert done.stderr.count("done before") == 4  # the checkpoint lacked a file, so it was made again
    assert sha256_of(merged) == weights
    assert json.loads((folder / "eval.json").read_text())["config"]["questions"] == 1


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_was_not(tmp_path: Path, tiny_model: Path) -> None:
    make_project(tmp_path, tiny_model)
    whole = subprocess.run(
        [sys.executable, "-m", "sdft_cli", "run", "--out", "whole"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert whole.returncode == 0, whole.stderr
    killed = subprocess.run(
        [sys.executable, "-m", "tests.cli.kills", str(tmp_path), "run", "--out", "killed"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == 0, killed.stderr
    assert int((tmp_path / "lives").read_text()) >= 5
    assert "Going on after step" in killed.stderr
    ends = tmp_path / "whole", tmp_path / "killed"
    assert (ends[0] / ADAPTER).read_bytes() == (ends[1] / ADAPTER).read_bytes()
    assert stages(ends[0]).keys() == stages(ends[1]).keys()
    assert {stage["status"] for stage in stages(ends[1]).values()} == {"finished", "skipped"}
    listed = [{str(p.relative_to(end)) for p in end.rglob("*") if "checkpoints" not in p.parts} for end in ends]
    assert listed[0] == listed[1]  # nothing half-written stays


@pytest.mark.slow
def test_a_stage_that_says_stop_stops_the_run_and_is_done_again(sdft: Run, tmp_path: Path, tiny_model: Path) -> None:
    make_project(tmp_path, tiny_model, gate="stop")
    shutil.copytree(tiny_model, tmp_path / "same")
    text = (tmp_path / "sdft.yaml").read_text()
    (tmp_path / "sdft.yaml").write_text(text.replace("merge: {", "merge: {base: same, "))
    done = sdft("run", "--out", "r")
    assert done.returncode == 4
    assert "The teacher-lift gate fails" in done.stderr
    assert "Stopped in stage gate (exit code 4)" in done.stderr
    assert "sdft run --resume --out r" in done.stderr
    found = stages(tmp_path / "r")
    assert list(found) == ["prepare", "plan", "gate"]
    assert (found["gate"]["status"], found["gate"]["exit_code"]) == ("stopped", 4)
    assert found["gate"]["why"].startswith("The teacher-lift gate fails")
    done = sdft("run", "--resume", "--out", "r", "--set", "gate.action=warn", "--set", "eval.x=1")
    assert done.returncode == 2
    done = sdft("run", "--resume", "--out", "r", "--set", "gate.action=warn")
    assert done.returncode == 0, done.stderr
    assert "1/7 prepare: done before" in done.stderr
    assert stages(tmp_path / "r")["gate"]["outputs"].keys() == {"run/gate.json"}
    assert read_json(tmp_path / "r" / "run" / "merged" / "merge-certificate.json", "")["base"] == "same"


def test_what_is_wrong_is_said_before_anything_is_made(sdft: Run, tmp_path: Path) -> None:
    for arguments, code, told in (
        (["run"], 2, "let `sdft init` find them"),
        (["run", "nowhere/at/all", "--profile", "cpu-demo"], 2, "is no file, no folder and no Hub dataset id"),
        (["run", "x", "--profile", "cpu_demo"], 2, "did you mean cpu-demo?"),
        (["run", "x", "--resume", "--overwrite"], 2, "give one of them"),
        (["run", "x", "--config", "none.yaml"], 2, "none.yaml cannot be read"),
    ):
        done = sdft(*arguments)
        assert done.returncode == code, done.stderr
        assert told in done.stderr
        assert "Traceback" not in done.stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    done = sdft("run", "x", "--profile", "cpu-demo", "--out", "mine", "--overwrite")
    assert done.returncode == 2
    assert (tmp_path / "mine" / "thesis.txt").is_file()
