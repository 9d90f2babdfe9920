"""A missing extra is a sentence: every command in an environment of the base dependencies alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
from packaging.requirements import Requirement

pytest.importorskip("torch")

from sdft_cli.cli.common import command
from sdft_cli.cli.main import app
from sdft_cli.errors import EXTRA_OF
from tests.cli.inputs import write_inputs

ROOT = Path(__file__).resolve().parents[2]
WORKS = [
    "prepare sessions --model {model} --validation-fraction 0.3 --out new",
    "report data",
    "export data --format openai --out rows.jsonl",
    "cards",
    "compare run other",
]
NEEDS = {
    "plan data --profile cpu-demo": ("sdft plan", "train"),
    "doctor --profile cpu-demo --model {model}": ("sdft doctor", "train"),
    "gate data --profile cpu-demo": ("sdft gate", "train"),
    "train data --profile cpu-demo --gate off": ("sdft train", "train"),
    "train --resume --out run": ("sdft train", "train"),
    "merge run --bf16": ("sdft merge", "train"),
    "eval run data": ("sdft eval", "train"),
    "demo": ("sdft demo", "demo"),
    "prepare codex.jsonl --model {model}": ("A session of Codex", "traces"),
}


def test_the_table_of_extras_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    expected = {}
    for extra, requirements in project["optional-dependencies"].items():
        names = {Requirement(text).name for text in requirements} - {"sdft-cli"}
        if extra != "dev":
            expected |= {name.replace("-", "_"): extra for name in names}
    assert expected == EXTRA_OF


def test_every_command_works_or_names_the_extra_that_it_needs(tiny_model: Path, tmp_path: Path) -> None:
    write_inputs(tmp_path, tiny_model)
    (tmp_path / "codex.jsonl").write_text(json.dumps({"type": "session_meta", "payload": {"id": "a", "cwd": "/x"}}))
    commands = [*WORKS, *NEEDS]
    assert {text.split()[0] for text in commands} == {
        info.name or info.callback.__name__ for info in app.registered_commands if info.callback
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.cli.bare"],
        input=json.dumps([text.format(model=tiny_model).split() for text in commands]),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = dict(zip(commands, json.loads(done.stdout), strict=True))
    for text in WORKS:
        assert results[text][0] == 0, results[text]
    for text, (what, extra) in NEEDS.items():
        code, said = results[text]
        assert code == 1, (text, said)
        last = said.splitlines()[-1]
        assert last.startswith(f"sdft: {what} needs "), (text, said)
        assert last.endswith(f", which is not installed: pip install 'sdft-cli[{extra}]'")


@pytest.mark.parametrize(("name", "message"), [("no_such_module", "no_such"), ("torch.nowhere", "torch.nowhere")])
def test_another_missing_module_is_a_bug_with_its_traceback(name: str, message: str) -> None:
    def broken() -> None:
        __import__(name)

    with pytest.raises(ModuleNotFoundError, match=message):
        command(broken)()


def test_a_missing_package_ends_a_command_with_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    def evaluate() -> None:
        raise ModuleNotFoundError("No module named 'peft'", name="peft")

    with pytest.raises(typer.Exit) as caught:
        command(evaluate)()
    assert caught.value.exit_code == 1
    assert capsys.readouterr().err == (
        "sdft: sdft eval needs peft, which is not installed: pip install 'sdft-cli[train]'\n"
    )
