"""Each section of docs/adding.md, applied to a copy of the package: a new thing needs no other file than it names."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdft_cli.records import read_dataset
from sdft_cli.report.live import divergence
from tests.conftest import ROOT
from tests.engine.prepared import prepared
from tests.fork_server import ForkServer

WriteLines = Callable[..., Path]
Sdft = Callable[..., str]

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


@pytest.fixture
def sdft(fork_server: ForkServer) -> Sdft:
    """Run the `sdft` of a copy, in its folder; return what it prints."""

    def run(copy: Path, *arguments: object) -> str:
        environment = {**os.environ, "COLUMNS": "160", "NO_COLOR": "1"}
        done = fork_server.run([str(argument) for argument in arguments], copy, environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


EVALUATIONS = """
import json
from pathlib import Path
import sdft_cli
from sdft_cli.report import evaluation, terminal
from tests.evaluation.documents import document

assert Path(sdft_cli.__file__).parent.parent == Path.cwd()
for name, quality in (("a", 0.2), ("b", 0.6)):
    found = document(tuned=("tuned", quality))
    Path(name).mkdir()
    (Path(name) / "eval.json").write_text(json.dumps(found))
terminal.stdout().print(evaluation.report(found))
"""


def test_a_metric_is_one_file(sdft: Sdft, tmp_path: Path) -> None:
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
    compared = json.loads(sdft(copy, "compare", "a", "b", "--skill", key, "--json"))
    assert compared["trade_off"][1]["skill"]["value"] == -gap["value"]
    assert label in sdft(copy, "compare", "a", "b", "--skill", key)


def test_a_trace_format_is_two_files(sdft: Sdft, tmp_path: Path, write_jsonl: WriteLines, smollm2: Path) -> None:
    heading = "A trace format"
    assert [name for name, _ in blocks_of(heading)] == ["sdft_cli/traces/toy.py", "sdft_cli/traces/readers.py"]
    copy = apply_section(tmp_path, heading)
    talk = [["user", "Hello"], ["model", "Hi!"], ["user", "Bye"], ["model", "See you."]]
    traces = write_jsonl("toys.jsonl", [{"toy": talk}, {"toy": talk[:1]}, {"toy": [["nobody"]]}])
    sdft(copy, "prepare", traces, "--model", smollm2, "--out", tmp_path / "d", "--validation-fraction", "0")
    data = read_dataset(tmp_path / "d")
    assert [r.reference.content for r in data.train] == ["Hi!", "See you."]
    assert [m.content for m in data.train[1].context] == ["Hello", "Hi!", "Bye"]
    assert data.train[0].session.metadata["format"] == "toy"
    assert data.manifest["funnel"]["lines"] == {"broken": 1, "conversation": 2}
    assert data.manifest["broken_lines"] == ["toys.jsonl:3 (not enough values to unpack (expected 2, got 1))"]
    card = "import sys; from sdft_cli.traces.data_cards import parse_card; print(parse_card(sys.argv[1], 'a/b').reader)"
    text = "{dataset: a/b, format: toy, description: d, license: null, source: s}"
    assert run_on(copy, "-c", card, text) == "toy\n"


@pytest.mark.parametrize("caps", [(), ("--max-rollout-tokens", "8")], ids=["no cap", "a cap"])
def test_a_rejection_reason_is_one_file(
    sdft: Sdft, tmp_path: Path, write_jsonl: WriteLines, smollm2: Path, caps: tuple[str, ...]
) -> None:
    heading = "A rejection reason"
    assert [name for name, _ in blocks_of(heading)] == ["sdft_cli/records/reasons.py"]
    copy = apply_section(tmp_path, heading)
    secret = "We call it Bluebird, and nobody knows of it " + "yet " * 40
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(["a", secret, "c", "d"])]
    traces = write_jsonl("talk.jsonl", [{"messages": turns}])
    prepared = sdft(copy, "prepare", traces, "--model", smollm2, "--out", tmp_path / "d", *caps)
    data = read_dataset(tmp_path / "d")
    assert [r.reference.content for r in data.train] == ["d"]
    assert [(r.turn_index, r.reason) for r in data.rejected] == [(1, "confidential")]
    assert data.manifest["funnel"]["rejected"] == {"confidential": 1}
    page = tmp_path / "page.html"
    sdft(copy, "report", tmp_path / "d", "--html", page)
    for shown in (prepared, sdft(copy, "report", tmp_path / "d"), page.read_text(encoding="utf-8")):
        assert "names the project Bluebird" in shown
    assert json.loads(sdft(copy, "report", tmp_path / "d", "--json"))["funnel"]["rejected"] == {"confidential": 1}


def train_a_step(
    sdft: Sdft, copy: Path, tiny_model: Path, folder: Path, *options: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train the tiny model for a step with the copy; return run.json and the line of metrics.jsonl."""
    data = prepared(tiny_model, folder, 12, 0.0)
    settings = ["optim.max_steps=1", "optim.turns_per_step=2", "rollout.max_new_tokens=4", "gate.action=off"]
    sets = [word for setting in settings for word in ("--set", setting)]
    run = folder / "run"
    sdft(copy, "train", data.path, "--profile", "cpu-demo", "--model", tiny_model, "--out", run, *sets, *options)
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads((run / "run.json").read_text(encoding="utf-8")), json.loads(lines[0])


def test_a_divergence_is_two_files(sdft: Sdft, tmp_path: Path, tiny_model: Path) -> None:
    files = [file for file, _ in blocks_of("A divergence")]
    assert files == ["sdft_cli/choices.py", "sdft_cli/engine/objective/formula.py"]
    copy = apply_section(tmp_path, "A divergence")
    _, metrics = train_a_step(sdft, copy, tiny_model, tmp_path, "--set", "distill.divergence=total_variation")
    assert metrics["updated"]
    assert metrics["grad_norm"] > 0
    assert 0 < metrics["tv_per_token"] < 1
    assert metrics["tv_per_token"] == pytest.approx(metrics["loss"], rel=1e-5)
    assert divergence(metrics) == f"TV {metrics['tv_per_token']:.4f}"


def test_a_weighting_of_tokens_is_two_files(sdft: Sdft, tmp_path: Path, tiny_model: Path) -> None:
    files = [file for file, _ in blocks_of("A weighting of tokens")]
    assert files == ["sdft_cli/choices.py", "sdft_cli/engine/objective/weights.py"]
    copy = apply_section(tmp_path, "A weighting of tokens")
    _, metrics = train_a_step(sdft, copy, tiny_model, tmp_path, "--set", "distill.token_weights=doubt")
    assert metrics["updated"]
    assert metrics["kl_per_token"] != pytest.approx(metrics["loss"], rel=1e-6)


def test_a_backend_is_two_files(sdft: Sdft, tmp_path: Path, tiny_model: Path) -> None:
    files = [file for file, _ in blocks_of("A backend")]
    assert files == ["sdft_cli/engine/models/backend_toy.py", "sdft_cli/choices.py"]
    copy = apply_section(tmp_path, "A backend")
    info, metrics = train_a_step(sdft, copy, tiny_model, tmp_path, "--backend", "toy")
    assert (info["backend"], info["backend_reason"]) == ("toy", "as asked")
    assert metrics["updated"]
    choose = "from sdft_cli.engine.models.load import choose_backend; print(choose_backend('auto', 'mamba')[0])"
    assert run_on(copy, "-c", choose) == "transformers\n"


TOY_TURNS = """
from sdft_cli.prompts.syntaxes.find import find_syntax

def render(message):
    return message.content + "".join(f"<<{c.name} {c.arguments}>>" for c in message.tool_calls)

found = find_syntax(render).syntax
turn = found.parse('So. <<Read {"path": ">>"}>> and <<Stop {', [])
print(found.name, turn.content, turn.calls, turn.errors, turn.begun)
"""


def test_a_call_syntax_is_two_files(tmp_path: Path) -> None:
    heading = "A call syntax"
    files = [file for file, _ in blocks_of(heading)]
    assert files == ["sdft_cli/prompts/syntaxes/toy.py", "sdft_cli/prompts/syntaxes/find.py"]
    printed = run_on(apply_section(tmp_path, heading), "-c", TOY_TURNS)
    call = "ParsedCall(name='Read', arguments={'path': '>>'})"
    assert printed == f"toy So.  and ({call},) ('unterminated',) Stop\n"
