"""A missing extra is a sentence: every command in an environment of the base dependencies alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

pytest.importorskip("torch")

from sdft_cli.cli.main import app
from sdft_cli.cli.support.common import command
from sdft_cli.engine.kernels.traps import Stack, known_trap
from sdft_cli.errors import EXTRA_OF
from tests.cli.inputs import write_inputs

ROOT = Path(__file__).resolve().parents[2]
WORKS = [
    "prepare sessions --model {model} --validation-fraction 0.3 --out new",
    "report data",
    "export data --format openai --out rows.jsonl",
    "cards",
    "compare run other",
    "inspect data",
    "init sessions --yes",
]
NEEDS = {
    "plan data --profile cpu-demo": ("sdft plan", "train"),
    "doctor --profile cpu-demo --model {model}": ("sdft doctor", "train"),
    "gate data --profile cpu-demo": ("sdft gate", "train"),
    "train data --profile cpu-demo --gate off": ("sdft train", "train"),
    "train --resume --out run": ("sdft train", "train"),
    "merge run --bf16": ("sdft merge", "train"),
    "eval run data": ("sdft eval", "train"),
    "chat run": ("sdft chat", "train"),
    "run sessions --profile cpu-demo --out whole": ("sdft run", "train"),
    "demo": ("sdft demo", "demo"),
    "prepare codex.jsonl --model {model}": ("A session of Codex", "traces"),
    "prepare sessions --engine ray --out on-ray --model {model}": ("--engine ray", "ray"),
}


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MODULES = {"fla-core": "fla"}
"""Modules that are not named as what installs them."""

LINUX = {"python_version": "3.12", "python_full_version": "3.12.0", "sys_platform": "linux"}
LOCKS = {"cpu": (), "gpu": ("gpu",), "unsloth": ("gpu", "unsloth")}
"""Files of `requirements/`, and the extras that they hold all of; that of the CPU has its own list."""


def test_the_table_of_extras_is_that_of_the_project() -> None:
    """A package of several extras belongs to the first."""
    expected: dict[str, str] = {}
    for extra, requirements in PROJECT["optional-dependencies"].items():
        for name in {Requirement(text).name for text in requirements} - {"sdft-cli"}:
            if extra != "dev":
                expected.setdefault(MODULES.get(name, name.replace("-", "_")), extra)
    assert expected == EXTRA_OF


def asked_for(extras: Iterable[str]) -> list[Requirement]:
    """The project's own requirements with these extras, and those that they name in turn, on Linux."""
    found = [Requirement(text) for text in PROJECT["dependencies"]]
    for extra in extras:
        for text in PROJECT["optional-dependencies"][extra]:
            part = Requirement(text)
            found += asked_for(part.extras) if part.name == "sdft-cli" else [part]
    return [part for part in found if part.marker is None or part.marker.evaluate(LINUX)]


def pins(lock: str) -> dict[str, Version]:
    lines = [x for x in lock.splitlines() if x and not x.startswith("#")]
    found = {}
    for line in lines:
        name, version = re.fullmatch(r"([\w.-]+)==([\w.!]+)", line).groups()  # type: ignore[union-attr]
        found[canonicalize_name(name)] = Version(version)
    assert len(found) == len(lines)
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_pins_what_the_project_asks_for(name: str) -> None:
    """Nothing but pins, neither an index nor a path; each version is one that the project allows."""
    lock = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    found = pins(lock)
    extras = LOCKS[name]
    assert found.keys() >= {canonicalize_name(part.name) for part in asked_for(extras)}
    for part in asked_for(PROJECT["optional-dependencies"]):  # what another extra brings may be there too
        assert found.get(canonicalize_name(part.name)) is None or found[canonicalize_name(part.name)] in part.specifier
    header = lock.splitlines()[0]
    target = "lock" if name == "cpu" else "lock-gpu"
    assert header.startswith(f"# Made by 'make {target}' from ")
    assert f"\n{target}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(f"--extra {extra}" in header for extra in extras)


@pytest.mark.parametrize("name", ["gpu", "unsloth"])
def test_what_a_lock_file_installs_on_a_gpu_is_no_known_trap(name: str) -> None:
    found = pins((ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8"))
    for capability in (8, 9, 10, 12):
        assert known_trap(Stack(capability, str(found["fla-core"]), str(found["triton"]))) is None
    assert any(package.startswith("nvidia-cudnn") for package in found)  # torch's CUDA build, not the CPU's


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
