"""A run that is killed and resumed ends with the bits of one that was not."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from sdft_cli.records import Dataset

ROOT = Path(__file__).resolve().parents[3]
KILLS = {"base": 20, "ema": 8, "sft": 8, "start": 6}
SETTINGS = [
    "rehearse=false",
    "gate.action=off",
    "products=exact",  # else each start measures them
    "lora.rank=4",
    "lora.alpha=8",
    "rollout.max_new_tokens=4",
    "rollout.top_p=1.0",
    "optim.turns_per_step=3",
    "optim.max_steps=14",
    "optim.max_tokens_per_pass=4096",
    "checkpoint.every=2",
    "checkpoint.keep_last=2",
    "heldout.every=5",
    "heldout.records=2",
    "heldout.max_new_tokens=3",
    "samples_every=3",
]
KINDS = {
    "base": ["distill.lambda_on_policy=0.5"],
    "ema": [
        "teacher.kind=ema",
        "teacher.ema_decay=0.5",
        "prefix_sharing=depth_first",
        "segment_tokens=64",
        "optim.group_by=session",
    ],
    "sft": ["objective=sft"],
    "start": [
        "teacher.start=5",
        "distill.token_weights=prefix",
        "distill.lambda_start=0",
        "distill.lambda_steps=6",
        "rollout.start_tokens=1",
        "rollout.grow_steps=6",
        "optim.position_decay=0.6",
    ],
}


class Nursery:
    """Starts runs in forked children of one process that has everything imported."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.engine.train.kill_probe"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _line(self) -> list[str]:
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()

    def start(self, folder: Path, dataset: Path, settings: list[str]) -> int:
        """Return the child's process id, as soon as its first step begins."""
        assert self.process.stdin is not None
        print(folder, dataset, *settings, file=self.process.stdin, flush=True)
        (word, pid), running = self._line(), self._line()
        assert (word, running) == ("started", ["running"])
        return int(pid)

    def wait(self) -> int:
        word, code = self._line()
        assert word == "ended"
        return int(code)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    found = Nursery(tmp_path_factory.mktemp("nursery"))
    yield found
    found.close()


def saving(folder: Path) -> bool:
    """Is a checkpoint half written?"""
    checkpoints = folder / "checkpoints"
    return checkpoints.is_dir() and any(p.is_dir() and p.name.startswith(".") for p in checkpoints.iterdir())


def without_times(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    timed = ("seconds", "phase_seconds", "tokens_per_second")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


def kill_at_random(
    nursery: Nursery, folder: Path, data: Path, settings: list[str], seconds: float, draw: random.Random
) -> str:
    """Start or resume, and kill: at a random moment, or in the middle of a save. Says which, or `finished`."""
    pid = nursery.start(folder, data, settings)
    in_save = draw.random() < 0.5
    deadline = time.monotonic() + draw.uniform(0, 1 if in_save else 0.6) * seconds
    while time.monotonic() < deadline and not (in_save and saving(folder)):
        time.sleep(0.0002)
    caught = saving(folder)
    with contextlib.suppress(ProcessLookupError):  # it was done already
        os.kill(pid, signal.SIGKILL)
    code = nursery.wait()
    assert code in (0, -signal.SIGKILL)
    return "finished" if code == 0 else "saving" if caught else "elsewhere"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_moments_the_run_ends_with_the_same_bits(
    kind: str, nursery: Nursery, tiny_model: Path, tiny_data: Dataset, tmp_path: Path
) -> None:
    settings = [*SETTINGS, f"model={tiny_model}", *KINDS[kind]]
    nursery.start(tmp_path / "whole", tiny_data.path, settings)
    start = time.monotonic()
    assert nursery.wait() == 0
    whole = time.monotonic() - start

    draw = random.Random(kind)
    kills: list[str] = []
    attempt = 0
    while len(kills) < KILLS[kind]:  # a run that ends before it was killed often enough is followed by another one
        attempt += 1
        folder = tmp_path / f"killed-{attempt}"
        while (outcome := kill_at_random(nursery, folder, tiny_data.path, settings, whole, draw)) != "finished":
            kills.append(outcome)
            if len(kills) >= KILLS[kind]:
                nursery.start(folder, tiny_data.path, settings)
                assert nursery.wait() == 0
                break
        name = "adapter/adapter_model.safetensors"
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        for log in ("metrics.jsonl", "heldout.jsonl", "heldout_answers.jsonl", "samples.jsonl"):
            assert without_times(folder / log) == without_times(tmp_path / "whole" / log)
    assert kills.count("saving") >= KILLS[kind] // 8, kills
    if kind == "base":
        shares = [line["on_policy_share"] for line in without_times(tmp_path / "whole" / "metrics.jsonl")]
        assert sum(shares) / len(shares) == pytest.approx(0.5, abs=0.02)
