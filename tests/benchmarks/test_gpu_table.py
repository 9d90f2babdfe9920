from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gpu_table import main, report

ROWS = [
    {"stage": "env", "at_s": 1.0, "gpu": "H", "kernels": {"rule": "fla"}},
    {"stage": "step", "at_s": 2.0, "sharing": "none", "seconds": 4.25, "prompt_tokens": 100, "peak_gb": 31.3},
    {"stage": "step", "at_s": 3.0, "skipped": "no time left"},
    {"stage": "alone", "at_s": 3.5, "failed": "RuntimeError: no"},
    {"stage": "end", "at_s": 4.0},
]


def test_numbers_stand_in_tables_and_nothing_is_hidden() -> None:
    text = report(ROWS)
    assert "| gpu | H |\n| kernels | rule fla |" in text
    assert (
        "**step**\n\n| sharing | prompt_tokens | seconds | peak_gb |\n| --- | --- | --- | --- |\n| none | 100 | 4.25 |"
    ) in text
    assert "step: skipped, no time left" in text
    assert "alone: failed, RuntimeError: no" in text


def test_an_earlier_run_stands_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now, before = tmp_path / "now.jsonl", tmp_path / "before.jsonl"
    now.write_text("noise\n" + "".join(json.dumps(row) + "\n" for row in ROWS))
    before.write_text(json.dumps({**ROWS[1], "seconds": 8.5}) + "\n")
    assert main([str(now), str(before)]) == 0
    assert "| none | 100 | 4.25 / 8.5 | 31.3 |" in capsys.readouterr().out
    assert main([]) == 2
