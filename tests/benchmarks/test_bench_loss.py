"""The losses of other libraries, as the benchmark calls them, are the same loss with the same gradient."""

from __future__ import annotations

import sys
from functools import cache

import pytest

pytest.importorskip("torch")

from benchmarks.bench_loss import OTHERS, make_step, probe, run

JOB = {"rows": 24, "words": 512, "hidden": 32, "chunk_rows": 8, "threads": 1, "steps": 1, "case": "reverse_kl"}


@cache
def computed(side: str) -> tuple[float, float]:
    """Return loss and length of the gradient: of another library, which may patch what it imports, in a new process."""
    if side in OTHERS:
        found = run({**JOB, "side": side})
        if "missing" in found:
            pytest.skip(found["missing"])
        return found["loss"], found["gradient"]
    step, student = make_step({**JOB, "side": side})
    return float(step()), float(student.grad.norm())


@pytest.mark.slow
@pytest.mark.parametrize("side", ["plain", *OTHERS])
def test_every_side_computes_our_loss_and_gradient(side: str) -> None:
    ours, other = computed("ours"), computed(side)
    assert ours[0] > 0.05
    assert other[0] == pytest.approx(ours[0], rel=1e-5)
    assert other[1] == pytest.approx(ours[1], rel=1e-4)


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel.chunked_loss", None)
    assert "liger_kernel" in probe("liger")["missing"]
