from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from sdft_cli.preparation.workers import _interrupts_held_back
from sdft_cli.traces.examples import write_examples
from tests.preparation.shared_secret import SECRET, write_shared_secret

Run = Callable[..., subprocess.CompletedProcess[str]]


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.slow
def test_any_number_of_workers_writes_the_same_bytes(sdft: Run, tmp_path: Path, smollm2: Path) -> None:
    write_examples(tmp_path / "sessions", 16)
    write_shared_secret(tmp_path / "sessions" / "secret.jsonl")
    digests = []
    for name, workers in (("one", 1), ("again", 1), ("three", 3)):
        done = sdft("prepare", "sessions", "--model", smollm2, "--out", name, "--workers", workers, "--json")
        assert done.returncode == 0, done.stderr
        digests.append(digest(tmp_path / name))
    assert digests[0] == digests[1] == digests[2]
    assert SECRET not in pl.read_parquet(tmp_path / "three" / "sessions.parquet").write_json()
    assert json.loads(done.stdout)["kept"] > 40


def test_an_interrupt_while_workers_start_is_not_lost() -> None:
    with pytest.raises(KeyboardInterrupt), _interrupts_held_back():
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_stopped_leaves_no_dataset(tmp_path: Path, smollm2: Path, workers: int, how: int) -> None:
    with (tmp_path / "sessions.jsonl").open("w") as file:
        for i in range(6000):
            turns = [{"role": ("user", "assistant")[j % 2], "content": f"word {i} {j} " * 20} for j in range(12)]
            file.write(json.dumps({"messages": turns}) + "\n")
    options = ["--model", str(smollm2), "--out", "d", "--workers", str(workers)]
    process = subprocess.Popen(
        [sys.executable, "-m", "sdft_cli", "prepare", "sessions.jsonl", *options],
        cwd=tmp_path,
        env={**os.environ, "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    time.sleep(6)
    assert process.poll() is None, process.stdout and process.stdout.read()
    os.killpg(process.pid, how)
    output, _ = process.communicate(timeout=60)
    assert not (tmp_path / "d").exists()
    if how == signal.SIGINT:
        assert process.returncode == 130, output
        assert "Traceback" not in output
