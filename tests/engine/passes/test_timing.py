from __future__ import annotations

import time

import pytest

pytest.importorskip("torch")

from sdft_cli.engine.passes.timing import Phases


def test_an_inner_phase_has_its_seconds_to_itself() -> None:
    phases = Phases()
    start = time.perf_counter()
    with phases("outer"):
        time.sleep(0.02)
        with phases("inner"):
            time.sleep(0.05)
        with phases("inner"):
            time.sleep(0.05)
    whole = time.perf_counter() - start
    assert phases.seconds["inner"] >= 0.1
    assert 0.02 <= phases.seconds["outer"] < 0.1
    assert sum(phases.seconds.values()) == pytest.approx(whole, abs=1e-3)


def test_a_phase_that_fails_is_closed() -> None:
    phases = Phases()
    with phases("outer"):
        with pytest.raises(ValueError, match="no"), phases("inner"):
            raise ValueError("no")
        time.sleep(0.01)
    assert phases.seconds["outer"] >= 0.01
