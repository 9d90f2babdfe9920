"""Sessions full of hostile strings go through the commands: nothing steers the terminal, nothing is lost unsaid."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile import FORBIDDEN, HOSTILE, write_hostile_sessions

Run = Callable[..., subprocess.CompletedProcess[str]]


def harmless(done: subprocess.CompletedProcess[str], code: int = 0) -> subprocess.CompletedProcess[str]:
    """Check the exit code, and that neither stream holds what a terminal would obey."""
    assert done.returncode == code, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    for text in (done.stdout, done.stderr):
        found = FORBIDDEN.search(text)
        assert found is None, repr(text[max(0, found.start() - 80) : found.end() + 20])
    return done


def test_hostile_sessions_go_through_the_commands(sdft: Run, tmp_path: Path, tiny_model: Path) -> None:
    write_hostile_sessions(tmp_path / "sessions")
    common = ("--model", tiny_model, "--max-seq-tokens", 4096, "--max-prompt-tokens", 2048, "--no-redact")
    options = (*common, "--max-rollout-tokens", 1024, "--validation-fraction", 0.2, "--out", "d")
    done = harmless(sdft("prepare", "sessions", *options, "--json"))
    funnel = json.loads(done.stdout)
    assert funnel["sessions"] == len(HOSTILE)
    assert funnel["turns"] == funnel["kept"] + sum(funnel["rejected"].values())
    assert funnel["turns"] == 2 * len(HOSTILE)
    report = harmless(sdft("report", "d", "--quiet", COLUMNS="80"))
    assert "\\x1b[31mred" in report.stdout  # the name of a tool, written out
    assert "[bold red]x[/bold red]" in report.stdout
    harmless(sdft("report", "d", "--html", "r.html"))
    page = (tmp_path / "r.html").read_text()
    assert "<script" not in page
    assert "<img" not in page
    for file_format in ("openai", "trl", "sharegpt"):
        to_file = ("--format", file_format, "--out", f"{file_format}.jsonl", "--split", "all")
        harmless(sdft("export", "d", *to_file, "--json"))
    rows = [json.loads(line) for line in (tmp_path / "openai.jsonl").read_text().strip("\n").split("\n")]
    said = {row["messages"][-1]["content"] for row in rows}
    assert f"said {HOSTILE['colour']}" in said  # files keep what was said
    harmless(sdft("plan", "d", "--profile", "cpu-demo", "--model", tiny_model, "--gpu", "24GB"))
    harmless(sdft("plan", "d", "--profile", "cpu-demo", "--model", tiny_model, "--json"))


@pytest.mark.parametrize("name", ["colour", "title", "c1", "markup", "rtl", "return", "lines"])
def test_hostile_arguments_are_written_out(name: str, sdft: Run) -> None:
    text = HOSTILE[name].replace("\n", " ")
    bad = (
        ("report", text),
        ("prepare", text),
        ("cards", text),
        ("train", "--profile", text),
        ("merge", text, "--bf16"),
    )
    for arguments in bad:
        assert "sdft: " in harmless(sdft(*arguments), 2).stderr
