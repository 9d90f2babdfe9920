from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.prepared import prepared

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_its_help_has_an_example(sdft: Run) -> None:
    done = sdft("gate", "--help")
    assert done.returncode == 0
    assert "Example: sdft gate" in done.stdout


@pytest.mark.slow
def test_a_model_that_learns_nothing_from_a_reference_is_exit_code_4(
    sdft: Run, tmp_path: Path, tiny_model: Path
) -> None:
    prepared(tiny_model, tmp_path, 8, 0.4)  # tmp_path/data
    common = ("gate", "data", "--profile", "cpu-demo", "--model", tiny_model, "--set", "gate.max_new_tokens=4")
    done = sdft(*common, "--records", 6, "--json", "gate.json")
    assert done.returncode == 4, done.stderr
    assert "sdft: The teacher-lift gate fails: on 6 train records the reference does not lift" in done.stderr
    assert "Traceback" not in done.stderr
    assert "expert NLL per token" in done.stdout
    document = json.loads((tmp_path / "gate.json").read_text())
    assert document["passed"] is False
    assert len(document["items"]) == 6
