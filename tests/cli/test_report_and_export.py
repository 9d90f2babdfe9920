"""`sdft report` and `sdft export` as a user runs them; no model and no tokenizer."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.cli.test_commands import clean
from tests.datasets import example_dataset
from tests.report.hostile import NAMES, hostile_dataset

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_report(sdft: Run, tmp_path: Path) -> None:
    hostile_dataset(tmp_path / "data" / "d")
    for width in ("80", "120"):
        done = sdft("report", COLUMNS=width)
        assert "Using the newest dataset: data/d" in clean(done, 0)
        assert max(map(len, done.stdout.splitlines())) <= int(width)
        assert "[/foo]" in done.stdout
        assert "\x1b" not in done.stdout
    done = sdft("report", "data/d", "--json", "--html", "r.html")
    assert "Report written to r.html" in clean(done, 0)
    found = json.loads(done.stdout)
    assert found["funnel"]["kept"] == 1
    assert {tool["name"] for tool in found["tools"]} == set(NAMES)
    assert "<script>" not in (tmp_path / "r.html").read_text()
    assert "--overwrite" in clean(sdft("report", "data/d", "--html", "r.html"), 2)
    clean(sdft("report", "data/d", "--html", "r.html", "--overwrite"), 0)
    assert "There is no dataset" in clean(sdft("report", "nowhere"), 2)


def test_export(sdft: Run, tmp_path: Path) -> None:
    data = example_dataset(tmp_path, 4)
    done = sdft("export", "data", "--format", "openai", "--out", "rows.jsonl")
    assert clean(done, 0).startswith(f"{len(data.train)} row(s) for trainers")
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == len(data.train)
    assert "--overwrite" in clean(sdft("export", "data", "--format", "openai", "--out", "rows.jsonl"), 2)
    error = clean(sdft("export", "data", "--format", "trl", "--out", "x.parquet", "--split", "all"), 0)
    assert "record(s) left out, because trl cannot hold them: prompt does not end in a user message" in error
    everything = sdft("export", "data", "--format", "trl", "--out", "y.jsonl", "--split", "all", "--tool-turns")
    assert f"{len(data.train) + len(data.validation)} row(s)" in clean(everything, 0)
    assert "belongs to --format trl" in clean(
        sdft("export", "data", "--format", "sharegpt", "--out", "z.jsonl", "--tool-turns"), 2
    )
    assert "Writing /proc/nowhere/x failed" in clean(
        sdft("export", "data", "--format", "sharegpt", "--out", "/proc/nowhere/x"), 1
    )
    clean(sdft("export", "data", "--format", "csv", "--out", "z.jsonl"), 2)
    assert not (tmp_path / "z.jsonl").exists()
