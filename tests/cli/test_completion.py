"""Completion, asked for as shells do: by variables of the environment, answered on stdout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sdft_cli.choices import DIVERGENCES
from sdft_cli.cli.support import completion
from sdft_cli.config import TrainConfig, fields_of

ROOT = Path(__file__).resolve().parents[2]
HEAVY = (
    "rich",
    "pydantic",
    "yaml",
    "numpy",
    "polars",
    "torch",
    "transformers",
    "datasets",
    "huggingface_hub",
    "jinja2",
)
ASK = (
    "import sys\nfrom sdft_cli.cli.main import app\n"
    "try: app(prog_name='sdft')\nexcept SystemExit: pass\n"
    f"print([name for name in {HEAVY} if sys.modules.get(name)], file=sys.stderr)"
)
"""`sdft` itself, which then says what it has imported."""
OFFERED = [
    ("sdft re", "report"),
    ("sdft report da", "data/mine"),
    ("sdft train data/m", "data/mine"),
    ("sdft report sub/", "sub/other"),
    ("sdft report runs/s", "runs/started"),
    ("sdft run ses", "sessions/"),
    ("sdft merge runs/", "runs/done"),
    ("sdft eval r", "runs/done"),
    ("sdft compare runs/done runs/e", "runs/evaluated"),
    ("sdft train --resume --out runs/s", "runs/started"),
    ("sdft train --profile c", "cpu-demo"),
    ("sdft train --set optim.learning", "optim.learning_rate="),
    ("sdft gate --divergences jsd,for", "jsd,forward_kl"),
    ("sdft gate --templates aga", "again"),
    ("sdft prepare x --teacher-template own", "own_turn"),
    ("sdft prepare x --chat-template smol", "smollm2"),
    ("sdft prepare armand0e/claude-fable-5-claude-c", "armand0e/claude-fable-5-claude-code"),
    ("sdft prepare ses", "sessions/"),
    ("sdft cards badlogic", "badlogicgames/pi-mono"),
    ("sdft report --js", "--json"),
]


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name in (
        "data/mine/manifest.json",
        "data/no dataset; here/manifest.json",
        "data/.hidden/manifest.json",
        "sub/other/manifest.json",
        "runs/started/run.json",
        "runs/done/run.json",
        "runs/done/adapter/adapter_config.json",
        "runs/evaluated/run.json",
        "runs/evaluated/eval.json",
        "sessions/a.jsonl",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    return tmp_path


def asked(shell: str, line: str, folder: Path) -> tuple[list[str], str]:
    """Return what a shell is offered for the last word of a line, and which heavy modules were imported."""
    words = line.split(" ")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "_SDFT_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    done = subprocess.run(
        [sys.executable, "-c", ASK], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines(), done.stderr.strip()


@pytest.mark.parametrize(("line", "name"), OFFERED)
def test_bash_is_offered_the_name_and_nothing_heavy_is_imported(line: str, name: str, folders: Path) -> None:
    offered, heavy = asked("bash", line, folders)
    assert name in offered
    assert all(one.startswith(line.split(" ")[-1]) for one in offered)
    assert heavy == "[]"


def test_zsh_and_fish_are_offered_the_same(folders: Path) -> None:
    zsh, heavy = asked("zsh", "sdft report data/", folders)
    assert zsh == ["_arguments '*: :((\"data/mine\"))'"]
    assert heavy == "[]"
    commands, heavy = asked("zsh", "sdft rep", folders)
    assert commands[0].startswith('_arguments \'*: :(("report":"Show a dataset')
    assert heavy == "[]"
    assert asked("fish", "sdft report data/", folders) == (["data/mine"], "[]")


def test_what_is_offered_for_nothing_typed(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folders)
    assert completion.datasets("") == ["data/mine"]  # no name that a shell would take apart, no hidden one
    assert completion.finished_runs("") == ["runs/done"]
    assert completion.divergences("") == list(DIVERGENCES)
    assert completion.datasets("nowhere/") == []


def test_the_keys_are_those_of_the_configuration() -> None:
    assert completion.training_keys() == list(fields_of(TrainConfig))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_can_be_shown(shell: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [sys.executable, "-c", "from sdft_cli.cli.main import app; app(prog_name='sdft')"]
    done = subprocess.run(
        [*command, "--show-completion", shell], env=environment, capture_output=True, text=True, check=True
    )
    assert "_SDFT_COMPLETE" in done.stdout
