"""Each section of docs/adding.md, applied to a copy of the package: a new thing needs no other file than it names."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

BLOCK = re.compile(r"^```python\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks_of(section: str) -> list[tuple[str, str]]:
    """Return (file, code) of each block of a section of docs/adding.md."""
    text = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")
    found = BLOCK.findall(text.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0])
    assert found, f"docs/adding.md has no block under {section}"
    return found


def apply_section(tmp_path: Path, section: str) -> Path:
    """Copy the package to a folder, add a section's blocks to the ends of their files, and return the folder."""
    copy = tmp_path / "copy"
    for name in ("sdft_cli", "templates", "data_cards"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file, code in blocks_of(section):
        path = copy / file
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        path.write_text(f"{before}\n\n{code}" if before else code, encoding="utf-8")
    return copy


def run_on(copy: Path, *arguments: str) -> str:
    """Run python on the copy, in its folder; return what it prints. The tests' own modules can be imported too."""
    path = os.pathsep.join((str(copy), str(ROOT)))
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "160", "NO_COLOR": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


EVALUATIONS = """
import json
from pathlib import Path
import sdft_cli
from sdft_cli.report import evaluation, terminal
from tests.evaluate.documents import document

assert Path(sdft_cli.__file__).parent.parent == Path.cwd()
for name, quality in (("a", 0.2), ("b", 0.6)):
    found = document(tuned=("tuned", quality))
    Path(name).mkdir()
    (Path(name) / "eval.json").write_text(json.dumps(found))
terminal.stdout().print(evaluation.report(found))
"""


def test_a_metric_is_one_file(tmp_path: Path) -> None:
    assert [file for file, _ in blocks_of("A metric")] == ["sdft_cli/metrics.py"]
    copy = apply_section(tmp_path, "A metric")
    key, label = "answer_characters", "greedy answer, characters"
    report = run_on(copy, "-c", EVALUATIONS)
    document = json.loads((copy / "b" / "eval.json").read_text())
    tuned, base = document["contenders"]["tuned"], document["contenders"]["base"]
    mean = sum(len(item["text"]) for item in tuned["items"]) / 24
    assert tuned["summary"][key] == mean > base["summary"][key]
    assert set(tuned["by_tool"]["Read"]) >= {key}
    gap = document["differences"]["tuned - base"][key]
    assert gap["low"] < gap["value"] < gap["high"]
    rows = [line for line in report.splitlines() if label in line]
    assert f"{mean:.1f}" in rows[0]
    assert f"{gap['value']:+.1f} [{gap['low']:+.1f}, {gap['high']:+.1f}]" in rows[1]
    # Longer is worse: what b gained in skill over the base is the difference with its sign turned.
    compared = json.loads(run_on(copy, "-m", "sdft_cli", "compare", "a", "b", "--skill", key, "--json"))
    assert compared["trade_off"][1]["skill"]["value"] == -gap["value"]
    assert label in run_on(copy, "-m", "sdft_cli", "compare", "a", "b", "--skill", key)
