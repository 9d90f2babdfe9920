"""The benchmark of the two backends, shorter: the same loss for five steps of the trainer on the same rollouts."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from benchmarks.bench_backends import BACKENDS, compare, prepare_data
from sdft_cli.engine.backend import has_unsloth


@pytest.mark.slow
@pytest.mark.skipif(not has_unsloth(), reason="unsloth is not installed")
def test_five_steps_of_the_trainer_have_the_same_loss(smollm2: Path, tmp_path: Path) -> None:
    found = compare(prepare_data(tmp_path, 12), steps=5, records=1, threads=1)
    plain, fast = (found["losses"][name] for name in BACKENDS)
    assert len(plain) == len(fast) == 5
    assert min(plain) > 0.01
    assert found["largest_difference"] < 1e-3
