"""Errors in their own words: a missing path, a damaged file, a warning."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")

from sdft_cli.cli.main import app
from sdft_cli.config import load_train_config
from sdft_cli.engine.train.run import warnings_of
from sdft_cli.errors import WARNING, DataError
from sdft_cli.run_folder import read_check_prompts
from tests.cli.inputs import write_inputs

MISSING = [
    "prepare missing/",
    "prepare /missing.jsonl",
    "prepare some/missing.jsonl",
    "prepare sessions --model ./missing",
    "prepare sessions --teacher-template missing.txt",
    "plan missing",
    "plan data --profile missing.yaml",
    "plan data --profile cpu-demo --model ./missing",
    "gate missing",
    "gate data --profile missing.yaml",
    "gate data --profile cpu-demo --model ./missing",
    "train missing",
    "train data --profile missing.yaml",
    "train data --profile cpu-demo --model ./missing",
    "train --resume --out missing",
    "train missing --resume --out run",
    "merge missing --bf16",
    "merge run --bf16 --base ./missing",
    "merge run --gguf x.gguf --llama-cpp missing",
    "eval missing data",
    "eval runs/missing data",
    "eval run missing",
    "eval run data --control missing",
    "eval run data --merged",  # <run>/merged
    "eval run data --lm-eval x --lm-eval-path missing",
    "compare missing run",
    "compare run missing/eval.json",
    "report missing",
    "export missing --format trl --out x.jsonl",
    "cards owner/missing",
]
DAMAGED = [
    ("run/eval.json", "compare run other", 3, "run `sdft eval` again"),
    ("run/run.json", "merge run --bf16", 3, "run `sdft train` again"),
    ("run/config.json", "eval run data", 3, "run `sdft train` again"),
    ("run/run.json", "train data --profile cpu-demo --out run", 3, "run `sdft train` again"),
    ("data/manifest.json", "report data", 3, "run `sdft prepare` again"),
    ("run/merged/merge-certificate.json", "eval run data --merged", 4, "merge again with --overwrite"),
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder, tiny_model)
    return folder


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """A command in this process leaves its handler of SIGTERM behind."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def refused(command: str, code: int) -> str:
    """Run a command that fails; return its one sentence."""
    done = CliRunner().invoke(app, command.split())
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == code, done.stderr
    (sentence,) = (line for line in done.stderr.splitlines() if line.startswith("sdft: "))
    return sentence


@pytest.mark.parametrize("command", MISSING)
def test_a_path_that_does_not_exist_is_a_usage_error(
    command: str, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(inputs)
    before = files(inputs)
    assert ("merged" if command.endswith("--merged") else "missing") in refused(command, 2)
    assert files(inputs) == before


@pytest.mark.parametrize(("file", "command", "code", "advice"), DAMAGED)
@pytest.mark.parametrize("content", [b'{"cut', b"[]", b"\xff"])
def test_a_damaged_file_is_named_with_the_advice_that_fits_it(
    content: bytes,
    file: str,
    command: str,
    code: int,
    advice: str,
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(shutil.copytree(inputs, tmp_path / "copy"))
    Path(file).parent.mkdir(exist_ok=True)
    Path(file).write_bytes(content)
    sentence = refused(command, code)
    assert Path(file).name in sentence
    assert advice in sentence
    assert "sdft train" in advice or "sdft train" not in sentence


@pytest.mark.parametrize("content", ["", '{"prompt": [1], "answer"', "[1]", '{"prompt": [1]}'])
def test_damaged_check_prompts_are_told(content: str, tmp_path: Path) -> None:
    path = tmp_path / "check_prompts.jsonl"
    with pytest.raises(DataError, match=r"is missing or damaged.*`sdft train`"):
        read_check_prompts(path, 1)
    path.write_text(content)
    with pytest.raises(DataError, match=r"check_prompts\.jsonl is (empty|missing or damaged)"):
        read_check_prompts(path, 1)
    path.write_text(json.dumps({"prompt": [1], "answer": [2]}))
    assert read_check_prompts(path, 1)[0].answer == [2]


@pytest.mark.parametrize(("rank", "said"), [("0", 1), ("1", 0)])
def test_several_processes_share_training_alone(rank: str, said: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would write what the others write; only the first one says so."""
    for name, value in (("RANK", rank), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sdft_cli.notices._rank", 0)
    done = CliRunner().invoke(app, ["eval", "run"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.count("start sdft eval without `torchrun` or `accelerate launch`.") == said
    assert len(done.stderr.splitlines()) == said


def test_every_warning_begins_alike() -> None:
    found = warnings_of(load_train_config("cpu-demo", ["teacher.kind=live", "optim.learning_rate=0.1"]))
    assert len(found) == 2
    assert all(text.startswith(WARNING) for text in found)
    package = Path(__file__).resolve().parents[2] / "sdft_cli"
    for path in package.rglob("*.py"):
        for word in ('"Warning', "'Warning", '"WARNING', "'WARNING"):
            assert word not in path.read_text() or path.name == "errors.py", f"{path}: use errors.WARNING"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
def test_a_warning_is_bold_on_a_terminal_only() -> None:
    code = f"from sdft_cli.notices import say; say({WARNING + 'x'!r}); say('y')"
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    outer, inner = os.openpty()
    subprocess.run([sys.executable, "-c", code], stderr=inner, env=environment, check=True)
    os.close(inner)
    assert os.read(outer, 1000).decode().splitlines() == ["\x1b[1;31mWARNING: x\x1b[0m", "y"]
    os.close(outer)
    plain = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, env=environment, check=True)
    assert plain.stderr == b"WARNING: x\ny\n"
