"""What goes where: data on stdout, the rest on stderr, as loud as was asked for; the last line says what is next."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from sdft_cli.cli.main import app
from sdft_cli.notices import loudness, say, set_loudness, visible
from tests.datasets import example_dataset

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
NO_NUMBERS: set[str] = set()
"""Commands that show none, and so have no --json."""
QUICK = ["report data", "export data --format openai --out rows.jsonl", "cards", "cards badlogicgames/pi-mono"]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return example_dataset(tmp_path, 3).path


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_same_last_options(name: str) -> None:
    options = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    assert {"--quiet", "--verbose"} <= options
    assert ("--json" in options) == (name not in NO_NUMBERS)


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize("line", QUICK)
def test_json_is_all_of_stdout_and_the_last_line_says_what_is_next(line: str) -> None:
    plain = CliRunner().invoke(app, line.split())
    data = CliRunner().invoke(app, [*line.replace("rows", "again").split(), "--json"])
    assert (plain.exit_code, data.exit_code) == (0, 0), data.output
    assert json.loads(data.stdout)
    for done in (plain, data):
        assert re.search(r"[Nn]ext: sdft \w|read back: sdft \w", done.stderr.splitlines()[-1])


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize("line", ["--quiet report data", "report data --quiet", "report -q data"])
def test_quiet_leaves_the_data(line: str) -> None:
    done = CliRunner().invoke(app, line.split())
    assert (done.exit_code, done.stderr) == (0, "")
    assert "Funnel" in done.stdout


@pytest.mark.parametrize("line", ["--verbose report missing", "report missing --verbose"])
def test_verbose_says_where_an_error_comes_from(line: str) -> None:
    done = CliRunner().invoke(app, line.split())
    assert done.exit_code == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("sdft: There is no dataset, run or evaluation missing")
    again = CliRunner().invoke(app, ["report", "missing"])
    assert len(again.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "line", ["--quiet --verbose cards", "cards --quiet --verbose", "--quiet cards --quiet --verbose"]
)
def test_quiet_and_verbose_contradict_each_other(line: str) -> None:
    done = CliRunner().invoke(app, line.split())
    assert done.exit_code == 2
    assert "leave one out" in done.stderr


def test_when_quiet_warnings_and_errors_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        set_loudness("quiet")
        assert loudness() == "quiet"
        for text in ("a notice", "WARNING: careful", "sdft: wrong"):
            say(text)
    finally:
        set_loudness("normal")
    assert capsys.readouterr().err == "WARNING: careful\nsdft: wrong\n"


def test_what_steers_a_terminal_is_written_out() -> None:
    hidden = "a\x1b[31m\tb\r\x07\x9b2J\u202ec\u2028\ud800\x00d\n\u00e9 \u4e2d\U0001f468\u200d\U0001f469"
    shown = "a\\x1b[31m\\tb\\r\\x07\\x9b2J\\u202ec\\u2028\\ud800\\x00d\n\u00e9 \u4e2d\U0001f468\u200d\U0001f469"
    assert visible(hidden) == shown
    assert visible("a\tb\x07", keep="\t") == "a\tb\\x07"
    unseen = ["\u180e", "\ufff5", "\ufffe", "\U000e0041", "\U000e0101"]  # without width, reserved, tags, selectors
    assert all(visible(one) == one.encode("unicode_escape").decode() for one in unseen)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
@pytest.mark.parametrize("setting", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_that_wants_no_colour_gets_none(data: Path, setting: dict[str, str]) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS")}
    outer, inner = os.openpty()
    command = [sys.executable, "-m", "sdft_cli", "report", str(data)]
    root = Path(__file__).resolve().parents[2]
    environment |= {"PYTHONPATH": str(root), "TERM": "xterm", **setting}
    done = subprocess.Popen(command, stdout=inner, stderr=inner, env=environment)
    os.close(inner)
    text = b""
    try:
        while part := os.read(outer, 65536):
            text += part
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(outer)
    assert done.wait() == 0
    assert "Funnel" in text.decode()
    assert not re.search(rb"\x1b\[[0-9;]*[34]\d", text)  # no colour of letters or of what is behind them
    if "TERM" in setting:
        assert b"\x1b" not in text
