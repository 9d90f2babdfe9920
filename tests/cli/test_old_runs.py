"""Runs of earlier versions: what their configuration says and is no setting any more is dropped when it is read."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.prepared import prepared

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.slow
def test_a_run_with_a_removed_setting_is_merged_evaluated_and_resumed(
    sdft: Run, tmp_path: Path, tiny_model: Path
) -> None:
    prepared(tiny_model, tmp_path, 6, 0.3)  # tmp_path/data
    settings = ("lora.rank=4", "rollout.max_new_tokens=4", "heldout.every=null", "optim.schedule=constant")
    options = [word for value in settings for word in ("--set", value)]
    start = ["--profile", "cpu-demo", "--model", tiny_model, "--gate", "off", "--max-steps", 1, "--out", "r"]
    done = sdft("train", "data", *start, *options)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "r" / "config.json"
    config = json.loads(path.read_text())
    assert "device" not in config
    path.write_text(json.dumps({**config, "device": "any"}))
    for words in (
        ("merge", "r", "--bf16"),
        ("eval", "r", "data", "--max-new-tokens", 2, "--general", 0, "--questions", 0),
        ("train", "--resume", "--out", "r", "--max-steps", 2),
    ):
        done = sdft(*words)
        assert done.returncode == 0, done.stderr
    assert json.loads(path.read_text()) == {**config, "optim": {**config["optim"], "max_steps": 2}}
