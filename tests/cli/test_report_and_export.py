"""`sdft report` and `sdft export` as a user runs them; no model and no tokenizer."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from sdft_cli.engine.train.opening import records_hash
from tests.cli.test_commands import clean
from tests.datasets import example_dataset
from tests.report.hostile import NAMES, hostile_dataset
from tests.report.run.made import made_run

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
    assert "There is no dataset, run or evaluation nowhere" in clean(sdft("report", "nowhere"), 2)


def test_report_of_a_run_and_of_an_evaluation(sdft: Run, tmp_path: Path) -> None:
    run = made_run(tmp_path / "runs" / "mine")
    for width in ("80", "120"):
        done = sdft("report", COLUMNS=width)
        assert "Using the newest run: runs/mine" in clean(done, 0)
        assert "Report written to runs/mine/report.html" in done.stderr
        assert max(map(len, done.stdout.splitlines())) <= int(width)
        for part in ("20 of 20 steps", "The gate passes.", "Held out while training", "tuned - base", "weights differ"):
            assert part in done.stdout
        assert "Missing: The dataset mine is not where it was." in done.stdout
    assert "--overwrite" in clean(sdft("report", run, "--html", run / "report.html"), 2)
    (run / "report.html").unlink()
    found = json.loads(sdft("report", run, "--json").stdout)
    assert (found["run"]["model"], len(found["metrics"]), len(found["heldout"])) == ("m", 20, 4)
    assert not (run / "report.html").exists()
    done = sdft("report", run / "eval.json", "--html", "e.html")
    assert "Report written to e.html" in clean(done, 0)
    assert "Answers side by side" in (tmp_path / "e.html").read_text()
    assert "By position" in sdft("report", run / "eval.json").stdout


def test_report_of_the_folder_of_a_demo_and_of_nothing(sdft: Run, tmp_path: Path) -> None:
    """The run's dataset is found beside it, wherever the folder was moved to."""
    assert "run `sdft prepare SOURCE` first" in clean(sdft("report"), 2)
    data = example_dataset(tmp_path / "demo", 4)
    run = made_run(tmp_path / "demo" / "run")
    info = json.loads((run / "run.json").read_text())
    info["dataset"] |= {"path": "/moved/data", "records_hash": records_hash(data.train)}
    (run / "run.json").write_text(json.dumps(info))
    (run / "eval.json").rename(tmp_path / "demo" / "eval.json")
    (tmp_path / "demo" / "sdft-run.json").write_text("{}")
    done = sdft("report", "demo")
    assert "Report written to demo/run/report.html" in clean(done, 0)
    page = (run / "report.html").read_text()
    assert "Other caps" in page
    assert "Did it learn" not in page
    assert "tuned - base" in page
    assert "<h1>demo</h1>" in page
    assert "Using the newest run: demo/run" in clean(sdft("report"), 0)
    (tmp_path / "runs").mkdir()
    (tmp_path / "demo").rename(tmp_path / "runs" / "mine")  # where `sdft run` puts it
    assert "Using the newest run: runs/mine/run" in clean(sdft("report"), 0)
    assert "<h1>mine</h1>" in (tmp_path / "runs" / "mine" / "run" / "report.html").read_text()
    (tmp_path / "runs" / "mine").rename(tmp_path / "demo")
    info["dataset"]["records_hash"] = "other"
    (run / "run.json").write_text(json.dumps(info))
    assert "its records are others" in " ".join(sdft("report", "demo").stdout.split())
    (tmp_path / "empty").mkdir()
    assert "is no dataset (manifest.json), no run (run.json)" in clean(sdft("report", "empty"), 2)
    assert "There is no file gone.json" in clean(sdft("report", "gone.json"), 2)
    (tmp_path / "x.json").write_text("[]")
    assert "no JSON object" in clean(sdft("report", "x.json"), 3)


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
