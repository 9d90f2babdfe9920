from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_demo_runs_the_whole_path_on_the_real_model(
    sdft: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, smollm2: Path
) -> None:
    """One step on twelve sessions; `make demo` is the same with more of both."""
    done = sdft("demo", "--sessions", 12, "--steps", 1)
    assert done.returncode == 0, done.stderr
    for word in ("Funnel", "Merge certificate", "tool turns: call parses", "Merge certificate", "tuned - base"):
        assert word in done.stdout
    assert (tmp_path / "demo" / "run" / "merged" / "model.safetensors").is_file()
    result = json.loads((tmp_path / "demo" / "eval.json").read_text())
    base, tuned = (result["contenders"][name]["summary"] for name in ("base", "tuned"))
    assert base["tool_turns"] == tuned["tool_turns"] > 0
    assert 0.5 < base["expert_nll_per_token"] < 2
    assert abs(base["expert_nll_per_token"] - tuned["expert_nll_per_token"]) < 0.2  # one warm-up step moves little
    again = sdft("demo", "--sessions", 12, "--steps", 1)
    assert again.returncode == 2
    assert "--overwrite" in again.stderr
