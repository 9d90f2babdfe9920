"""The losses of other libraries, as the benchmark calls them, are the same loss with the same gradient."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import pytest

pytest.importorskip("torch")

from benchmarks.bench_loss import OTHERS, probe, run

JOB = {"rows": 24, "words": 512, "hidden": 32, "chunk_rows": 8, "threads": 1, "steps": 1, "case": "reverse_kl"}


@cache
def our_side() -> dict[str, Any]:
    return run({**JOB, "side": "ours"})


@pytest.mark.slow
@pytest.mark.parametrize("side", ["plain", *OTHERS])
def test_every_side_computes_our_loss_and_gradient(side: str) -> None:
    missing = run({**JOB, "side": side, "probe": True})["missing"] if side in OTHERS else None
    if missing:
        pytest.skip(missing)
    ours, other = our_side(), run({**JOB, "side": side})
    assert ours["loss"] > 0.05
    assert other["loss"] == pytest.approx(ours["loss"], rel=1e-5)
    assert other["gradient"] == pytest.approx(ours["gradient"], rel=1e-4)


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel.chunked_loss", None)
    assert "liger_kernel" in probe("liger")["missing"]
