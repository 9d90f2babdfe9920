"""A name that is none: what may be meant, in one sentence, exit code 2."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sdft_cli.cli.main import app

ASKED = [
    ("report data/mien", "did you mean data/mine?"),
    ("report mine", "did you mean data/mine?"),
    ("export mine --format trl --out x.jsonl", "did you mean data/mine?"),
    ("merge runs/mine-cpu-dmeo --bf16", "did you mean runs/mine-cpu-demo?"),
    ("merge mine-cpu-demo --bf16", "did you mean runs/mine-cpu-demo?"),
    ("eval runs/mine-cpu-dmo data/mine", "did you mean runs/mine-cpu-demo?"),
    ("compare runs/mine-cpu-dmeo runs/mine-cpu-demo", "did you mean runs/mine-cpu-demo?"),
    ("train --resume --out runs/mine-cpu", "did you mean runs/mine-cpu-demo?"),
    ("train data/mine --profile cpudemo", "did you mean cpu-demo?"),
    ("train data/mine --set optim.lr=1", "did you mean optim.learning_rate"),
    ("train data/mine --set distill.divergence=reverse-kl", "did you mean reverse_kl?"),
    ("plan data/mine --set optm.max_steps=1", "did you mean optim.max_steps?"),
    ("prepare sesions", "did you mean sessions?"),
    ("prepare sessions --teacher-template agian", "did you mean again?"),
    ("prepare sessions --chat-template smollm", "did you mean smollm2?"),
    ("cards claude-fable-5", "did you mean armand0e/claude-fable-5-claude-code?"),
    ("train data/mine --profile x", "are cpu-demo, qwen3.5-9b-64k, recommended-qwen3.5-9b-64k, or name a YAML file."),
]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with a dataset, an evaluated run and sessions, by their marks only."""
    for name in (
        "data/mine/manifest.json",
        "runs/mine-cpu-demo/run.json",
        "runs/mine-cpu-demo/eval.json",
        "sessions/a.jsonl",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize(("line", "told"), ASKED)
def test_the_nearest_name_is_told(line: str, told: str) -> None:
    done = CliRunner().invoke(app, line.split())
    assert done.exit_code == 2, done.output
    (sentence,) = (text for text in done.stderr.splitlines() if text.startswith("sdft: "))
    assert told in sentence


@pytest.mark.parametrize(
    ("line", "told"),
    [("evl", "Did you mean 'eval'"), ("report --jsn", "(Possible options: --json)"), ("zzz", "No such command")],
)
def test_commands_and_options_have_neighbours_too(line: str, told: str) -> None:
    done = CliRunner().invoke(app, line.split())
    assert done.exit_code == 2
    assert told in re.sub(r"[│\s]+", " ", done.stderr)
