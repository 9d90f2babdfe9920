from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sdft_cli.traces.examples import write_examples

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_its_help_has_an_example(sdft: Run) -> None:
    done = sdft("gate", "--help")
    assert done.returncode == 0
    assert "Example: sdft gate" in done.stdout


@pytest.mark.slow
def test_the_real_small_model_passes_with_its_references_and_fails_with_others(
    sdft: Run, tmp_path: Path, smollm2: Path
) -> None:
    write_examples(tmp_path / "sessions", 24)
    done = sdft(
        *("prepare", "sessions", "--model", "smollm2-135m", "--teacher-template", "repeat", "--out", "data/d"),
        *("--validation-fraction", 0.3),
    )
    assert done.returncode == 0, done.stderr
    common = ("gate", "--profile", "cpu-demo", "--records", 8, "--set", "gate.max_new_tokens=8", "--json", "g.json")
    passed = sdft(*common)
    assert passed.returncode == 0, passed.stderr
    assert "The teacher-lift gate passes: on 8 validation records" in passed.stderr
    assert "expert NLL per token" in passed.stdout
    assert json.loads((tmp_path / "g.json").read_text())["passed"] is True
    failed = sdft(*common, "--shuffle-references")
    assert failed.returncode == 4
    assert "sdft: The teacher-lift gate fails: on 8 validation records with shuffled references" in failed.stderr
    assert "Traceback" not in failed.stderr
    document = json.loads((tmp_path / "g.json").read_text())
    assert document["passed"] is False
    assert document["shuffled"] is True
