"""`examples/colab.ipynb`: its cells run in order on a tiny model; only installation and settings are replaced."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from sdft_cli.choices import DEFAULT_PROFILE
from sdft_cli.config import PrepareConfig, load_train_config
from sdft_cli.traces.examples import write_examples

NOTEBOOK = json.loads((Path(__file__).resolve().parents[2] / "examples" / "colab.ipynb").read_text(encoding="utf-8"))
SETTINGS = {
    "PROFILE": "cpu-demo",
    "SOURCE": "sessions",
    "OUT": "out",
    "PREPARE": {"validation_fraction": 0.25, "teacher_template": "again", "max_seq_tokens": 1024}
    | {"max_prompt_tokens": 896, "max_rollout_tokens": 128},
    "TRAIN": {"optim.max_steps": 2, "optim.turns_per_step": 2, "lora.rank": 4, "rollout.max_new_tokens": 4}
    | {"heldout.max_new_tokens": 4, "gate.action": "off"},
    "EVAL": {"max_new_tokens": 8, "general": 2, "questions": 2, "limit": 3},
    "PLAN": "--gpu 80GB",
}
"""The demo's, and less of everything."""


COMMAND = """
import shlex
from sdft_cli.cli.main import app

def sdft(line):
    assert not app(shlex.split(line), standalone_mode=False)
"""


def cells(tag: str | None = None) -> list[str]:
    code = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    return ["".join(cell["source"]) for cell in code if [tag] == (cell["metadata"].get("tags") or [None])]


def as_python(cell: str) -> str:
    """Return a cell as a module's text: `!sdft ...` is the command, names in braces filled in, in the same process."""
    lines = cell.splitlines()
    assert not any(line.startswith("!") and not line.startswith("!sdft ") for line in lines)
    return "\n".join(f"sdft(f{line[6:]!r})" if line.startswith("!") else line for line in lines)


def settings_of(cell: str) -> dict[str, Any]:
    scope: dict[str, Any] = {}
    exec(cell, scope)
    return {name: value for name, value in scope.items() if name.isupper()}


def test_it_is_a_clean_notebook_of_the_default_profile() -> None:
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in NOTEBOOK["cells"])
    (install,), (settings,) = cells("install"), cells("settings")
    assert install.startswith("%pip install")
    given = settings_of(settings)
    assert given["PROFILE"] == DEFAULT_PROFILE
    assert given["MODEL"] == load_train_config(DEFAULT_PROFILE).model == PrepareConfig(source="s").model
    assert set(given) == {"MODEL", *SETTINGS}


@pytest.mark.slow
def test_every_cell_runs_and_runs_again(tmp_path: Path, tiny_model: Path) -> None:
    write_examples(tmp_path / "sessions", 12)
    given = {"MODEL": str(tiny_model), **SETTINGS}
    lines = [COMMAND, *(f"{name} = {value!r}" for name, value in given.items()), *map(as_python, cells())]
    again = [cell for cell in map(as_python, cells()) if re.search(r"\b(prepare|train)\(", cell)]
    lines += ["def nothing(*a, **k): raise AssertionError('made twice')", "prepare = train = nothing"]
    lines += [
        cell.replace("import evaluate, load_dataset, merge, prepare, train", "import load_dataset") for cell in again
    ]
    (tmp_path / "cells.py").write_text("\n".join(lines))
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "NO_COLOR": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "cells.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for words in (
        "held out",
        "Merge certificate",
        "tuned - base",
        "expert:",
        "tuned: ",
        "peak",
        "cut off at 64 tokens",
    ):
        assert words in done.stdout, words
