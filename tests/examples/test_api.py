"""`examples/api.py` runs as it is, on a tiny model."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_example_runs(tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(ROOT / "examples" / "api.py"))["main"]
    main(tmp_path, str(tiny_model))
    printed = capsys.readouterr().out
    assert "trained for 2 steps" in printed
    assert "Merge certificate: the checkpoint on disk against base + adapter" in printed
    assert "tuned - base, paired by item" in printed
    assert printed.endswith("max_step is no argument: did you mean max_steps?\n")
    assert (tmp_path / "run" / "eval.json").is_file()
    assert (tmp_path / "run" / "merged" / "merge-certificate.json").is_file()
