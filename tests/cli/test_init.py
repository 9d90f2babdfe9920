"""`sdft init` where sessions are, where none are, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from sdft_cli.cli.main import app
from sdft_cli.stages.project import read_project
from sdft_cli.stages.proposal import Machine
from sdft_cli.traces.examples import write_examples


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of one's own, and a working folder beside it."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("CLAUDE_CONFIG_DIR", "CODEX_HOME", "PI_CODING_AGENT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def init(*arguments: str, columns: int = 80) -> Result:
    return CliRunner().invoke(app, ["init", *arguments], env={"COLUMNS": str(columns), "NO_COLOR": "1"})


def test_own_sessions_become_a_project_file(home: Path) -> None:
    write_examples(home / ".claude" / "projects" / "-p", 12)
    done = init("--yes")
    assert done.exit_code == 0, done.output
    assert "Claude Code" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert "next: sdft run" in done.stderr
    written = yaml.safe_load(Path("sdft.yaml").read_text())
    assert written["source"] == "~/.claude/projects"
    profile = "cpu-demo" if Machine.here().gpu is None else written["train"]["profile"]
    assert written["train"]["profile"] == profile
    assert "12 session(s)" in Path("sdft.yaml").read_text()
    project = read_project()
    assert project.prepare_config(None, {}, {}).teacher_template == written["prepare"]["teacher_template"]

    told = json.loads(init("--yes", "--overwrite", "--json").stdout)  # and nothing else there
    (seen,) = told.pop("sessions")
    assert (seen["agent"], seen["sessions"]) == ("Claude Code", 12)
    assert seen.keys() == {"agent", "files", "sessions", "turns", "output_tokens"}
    assert told == {"source": written["source"], "profile": profile, "model": written["model"]}

    before = Path("sdft.yaml").read_bytes()
    again = init("--yes")
    assert again.exit_code == 2
    assert "--overwrite" in again.stderr
    assert Path("sdft.yaml").read_bytes() == before
    done = init("--yes", "--overwrite", "--profile", "cpu-demo", "--model", "m", "--license", "mit")
    assert done.exit_code == 0, done.output
    written = yaml.safe_load(Path("sdft.yaml").read_text())
    assert (written["model"], written["prepare"]["license"]) == ("m", "mit")
    wrong = init("--yes", "--out", "b.yaml", "--license", "My Own!")
    assert wrong.exit_code == 2
    assert "license" in wrong.stderr
    assert not Path("b.yaml").exists()


def test_without_sessions_it_says_where_it_looked_and_what_to_do(home: Path) -> None:
    done = init("--yes")
    assert done.exit_code == 3
    for word in ("~/.claude/projects", "~/.codex/sessions", "sdft init FOLDER", "sdft demo"):
        assert word in done.stderr
    assert not Path("sdft.yaml").exists()
    (home / ".claude" / "projects").mkdir(parents=True)
    (home / ".claude" / "projects" / "x.jsonl").write_text("no session\n")
    done = init("--yes")
    assert done.exit_code == 3
    assert "No session that can be read" in done.stderr


def test_without_a_terminal_it_does_not_ask(home: Path) -> None:
    write_examples(home / ".claude" / "projects", 1)
    done = init()
    assert done.exit_code == 2
    assert "add --yes" in done.stderr
    assert not Path("sdft.yaml").exists()


def test_a_named_folder_is_looked_at_and_hostile_names_do_no_harm(home: Path) -> None:
    line = {"type": "assistant", "sessionId": "s", "version": "\x1b[31m9.9[red]\u202e", "message": {"id": "a"}}
    folder = home / ".claude" / "projects" / "-p"
    folder.mkdir(parents=True)
    (folder / "x.jsonl").write_text(json.dumps(line) + "\n" + json.dumps({**line, "timestamp": "</script>"}) + "\n")
    done = init("--yes")
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.output
    assert "\u202e" not in done.output
    write_examples(Path("mine"), 2)
    done = init("mine", "--yes", "--out", "mine.yaml")
    assert done.exit_code == 0, done.output
    assert "sdft run --config mine.yaml" in done.stderr
    assert yaml.safe_load(Path("mine.yaml").read_text())["source"] == "mine"
