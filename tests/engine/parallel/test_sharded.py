"""FSDP2: two processes that hold half of each layer make the run of one that holds all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engine.parallel.launcher import Launcher
from tests.engine.parallel.test_run import FEW, Runs, assert_same_run

torch = pytest.importorskip("torch")

FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
ON = {"rollout.weights": "adapter"}


@pytest.fixture(scope="module")
def runs(launcher: Launcher, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(launcher, tiny_model, tmp_path_factory.mktemp("sharded"))


def train(runs: Runs, name: str, count: int, settings: dict[str, Any], **environment: str) -> None:
    answer = runs.train(name, count, ON | settings, environment=environment)
    assert answer["codes"] == [0] * count, "".join(runs.said(name, rank) for rank in range(count))


def test_llama(runs: Runs) -> None:
    train(runs, "whole", 1, FEW | {"prefix_sharing": "none"})
    train(runs, "shards", 2, FEW | {"prefix_sharing": "none"}, **FSDP2)
    print(runs.said("shards", 0))
    assert_same_run(runs, "whole", "shards")
