"""`sdft train` as a user runs it: interrupted, damaged, resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.prepared import prepared

Run = Callable[..., subprocess.CompletedProcess[str]]
SETTINGS = [
    *("--profile", "cpu-demo", "--gate", "off", "--max-steps", "40"),
    *("--set", "lora.rank=4", "--set", "rollout.max_new_tokens=4", "--set", "optim.turns_per_step=2"),
    *("--set", "heldout.every=null", "--set", "checkpoint.every=3"),
]
ADAPTER = Path("adapter") / "adapter_model.safetensors"


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def interrupted(folder: Path, *arguments: Any, steps: int) -> tuple[int, str]:
    """Start a training command, send SIGTERM when so many steps are written; return its exit code and stderr."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sdft_cli", "train", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "NO_COLOR": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = folder / "runs" / "r" / "metrics.jsonl"
    while process.poll() is None and (not metrics.is_file() or len(metrics.read_text().splitlines()) < steps):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=120)
    return process.returncode, error


def check_profile(profile: dict[str, Any]) -> None:
    assert profile["steps"] == [1, 2, 3]
    phases = profile["phases"]
    assert {"encode", "rollout", "teacher", "student", "loss", "backward", "optimizer"} == phases.keys()
    assert sum(part["share"] for part in phases.values()) == pytest.approx(1)
    assert profile["seconds"] == pytest.approx(sum(part["seconds"] for part in phases.values()))
    assert profile["operations"] == sum(part["operations"] for part in phases.values()) > 0
    for part in [*phases.values(), profile]:
        speed = part["operations"] / part["seconds"]
        assert 0 <= part["utilisation"] == pytest.approx(speed / profile["ceiling_operations_per_second"])
        assert part["utilisation"] < 1
    assert profile["sharing"] == "packed"
    assert profile["independent_operations"] > 0


@pytest.mark.slow
def test_an_interrupted_run_is_saved_and_resumed_to_the_same_bits(sdft: Run, tmp_path: Path, tiny_model: Path) -> None:
    prepared(tiny_model, tmp_path, 6, 0.3)  # tmp_path/data
    start = ["data", *SETTINGS, "--model", tiny_model]
    whole = sdft("train", *start, "--out", "runs/whole", "--profile-steps", "3")
    assert whole.returncode == 0, whole.stderr
    assert "Steps 1 to 3, per step" in whole.stdout
    check_profile(json.loads((tmp_path / "runs" / "whole" / "profile.json").read_text()))

    code, error = interrupted(tmp_path, *start, "--out", "runs/r", steps=7)
    assert code == 130, error
    step = int(error.split("interrupted after step ")[1].split()[0])
    assert step >= 7
    assert f"step {step} of 40, which is saved: go on with `sdft train --resume --out runs/r`" in error
    assert "Traceback" not in error
    run = tmp_path / "runs" / "r"
    assert not (run / "adapter").exists()

    refused(sdft("train", *start, "--out", "runs/r"), 2, "not finished", "--resume")
    refused(sdft("merge", "runs/r", "--bf16"), 3, "no finished run", "--resume")
    refused(
        sdft("train", "--resume", "--out", "runs/r", "--set", "optim.eps=1e-6"), 2, "optim.eps=1e-08", "another run"
    )
    refused(sdft("train", "--resume", "--profile", "cpu-demo"), 2, "leave --profile out")

    newest = max((run / "checkpoints").glob("step-*"))
    assert newest.name == f"step-{step:06d}"
    damaged = bytearray((newest / "optimizer.safetensors").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (newest / "optimizer.safetensors").write_bytes(damaged)
    done = sdft("train", "--resume", "--out", "runs/r", "--set", "checkpoint.every=20")
    assert done.returncode == 0, done.stderr
    assert f"step-{step:06d} is damaged" in done.stderr
    assert "optimizer.safetensors" in done.stderr
    before = max(n for n in range(3, step + 1, 3) if n < step)
    assert f"Going on after step {before}" in done.stderr

    assert (run / ADAPTER).read_bytes() == (tmp_path / "runs" / "whole" / ADAPTER).read_bytes()
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "r")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 40
    refused(sdft("train", "--resume", "--out", "runs/r"), 2, "is finished (step 40)", "--max-steps")


@pytest.mark.slow
def test_a_teacher_with_nothing_to_teach_stops_the_run_before_its_first_step(
    sdft: Run, tmp_path: Path, tiny_model: Path
) -> None:
    prepared(tiny_model, tmp_path, 8, 0.4)
    start = ["train", "data", "--profile", "cpu-demo", "--model", tiny_model, "--out", "r"]
    refused(sdft(*start, "--set", "gate.max_new_tokens=4"), 4, "The teacher-lift gate fails", "gate.action=warn")
    assert not (tmp_path / "r").exists()
