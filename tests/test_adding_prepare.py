"""What docs/adding.md says of trace formats and rejection reasons, done to a copy of the package and run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sdft_cli.records import read_dataset
from tests.conftest import ROOT

WriteLines = Callable[..., Path]
_BLOCK = re.compile(r"^```python\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks_of(heading: str) -> list[tuple[str, str]]:
    """Return `(file, text)` for each block of a section of docs/adding.md."""
    text = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^{re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return _BLOCK.findall(section)


def apply_section(tmp_path: Path, heading: str) -> Path:
    """Copy the package, add the blocks of a section to the ends of their files, and return the copy's folder."""
    copy = tmp_path / "copy"
    for name in ("sdft_cli", "templates", "data_cards"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name, block in blocks_of(heading):
        with (copy / name).open("a", encoding="utf-8") as file:
            file.write(f"\n{block}")
    where = [sys.executable, "-c", "import sdft_cli; print(sdft_cli.__file__)"]
    imported = subprocess.run(where, cwd=copy, capture_output=True, text=True, check=True).stdout
    assert imported.startswith(str(copy))  # and not the package that was copied
    return copy


def run(copy: Path, *arguments: object) -> str:
    """Run the copy's `sdft` and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "sdft_cli", *map(str, arguments)], cwd=copy, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_trace_format_is_two_files(tmp_path: Path, write_jsonl: WriteLines, smollm2: Path) -> None:
    heading = "## A trace format"
    assert [name for name, _ in blocks_of(heading)] == ["sdft_cli/traces/toy.py", "sdft_cli/traces/readers.py"]
    copy = apply_section(tmp_path, heading)
    talk = [["user", "Hello"], ["model", "Hi!"], ["user", "Bye"], ["model", "See you."]]
    traces = write_jsonl("toys.jsonl", [{"toy": talk}, {"toy": talk[:1]}, {"toy": [["nobody"]]}])
    run(copy, "prepare", traces, "--model", smollm2, "--out", tmp_path / "d", "--validation-fraction", "0")
    data = read_dataset(tmp_path / "d")
    assert [r.reference.content for r in data.train] == ["Hi!", "See you."]
    assert [m.content for m in data.train[1].context] == ["Hello", "Hi!", "Bye"]
    assert data.train[0].session.metadata["format"] == "toy"
    assert data.manifest["funnel"]["lines"] == {"broken": 1, "conversation": 2}
    assert data.manifest["broken_lines"] == ["toys.jsonl:3 (not enough values to unpack (expected 2, got 1))"]
    card = "import sys; from sdft_cli.traces.data_cards import parse_card; print(parse_card(sys.argv[1], 'a/b').reader)"
    text = "{dataset: a/b, format: toy, description: d, license: null, source: s}"
    named = subprocess.run([sys.executable, "-c", card, text], cwd=copy, capture_output=True, text=True, check=True)
    assert named.stdout == "toy\n"


@pytest.mark.parametrize("caps", [(), ("--max-rollout-tokens", "8")], ids=["no cap", "a cap"])
def test_a_rejection_reason_is_one_file(
    tmp_path: Path, write_jsonl: WriteLines, smollm2: Path, caps: tuple[str, ...]
) -> None:
    heading = "## A rejection reason"
    assert [name for name, _ in blocks_of(heading)] == ["sdft_cli/records/reasons.py"]
    copy = apply_section(tmp_path, heading)
    secret = "We call it Bluebird, and nobody knows of it " + "yet " * 40
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(["a", secret, "c", "d"])]
    traces = write_jsonl("talk.jsonl", [{"messages": turns}])
    prepared = run(copy, "prepare", traces, "--model", smollm2, "--out", tmp_path / "d", *caps)
    data = read_dataset(tmp_path / "d")
    assert [r.reference.content for r in data.train] == ["d"]
    assert [(r.turn_index, r.reason) for r in data.rejected] == [(1, "confidential")]
    assert data.manifest["funnel"]["rejected"] == {"confidential": 1}
    page = tmp_path / "page.html"
    run(copy, "report", tmp_path / "d", "--html", page)
    for shown in (prepared, run(copy, "report", tmp_path / "d"), page.read_text(encoding="utf-8")):
        assert "names the project Bluebird" in shown
    assert json.loads(run(copy, "report", tmp_path / "d", "--json"))["funnel"]["rejected"] == {"confidential": 1}
