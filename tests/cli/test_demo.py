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
    """`make demo` is the same with more of everything."""
    done = sdft("demo", "--quick")
    assert done.returncode == 0, done.stderr
    for word in ("Funnel", "Merge certificate", "tool turns: call parses", "Merge certificate", "tuned - base"):
        assert word in done.stdout
    merged = tmp_path / "demo" / "run" / "merged"
    assert (merged / "model.safetensors").is_file()
    assert "| expert NLL, nats per token |" in (merged / "README.md").read_text()
    result = json.loads((tmp_path / "demo" / "eval.json").read_text())
    base, tuned = (result["contenders"][name]["summary"] for name in ("base", "tuned"))
    assert base["tool_turns"] == tuned["tool_turns"] > 0
    assert 0.5 < base["expert_nll_per_token"] < 2
    assert abs(base["expert_nll_per_token"] - tuned["expert_nll_per_token"]) < 0.2  # one warm-up step moves little
    assert "leave --sessions and --steps out" in sdft("demo", "--quick", "--steps", 2, "--out", "other").stderr
    again = sdft("demo", "--quick")
    assert again.returncode == 2
    assert "--overwrite" in again.stderr
