"""Weights of rollouts of an older student, against numbers that were computed by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.config import RolloutSettings  # noqa: E402
from sdft_cli.engine.objective.importance import importance, is_weighed, weighed  # noqa: E402
from sdft_cli.engine.passes.decode import Rollout  # noqa: E402

NOW, THEN = [0.5, 0.2, 0.9, 0.1], [0.25, 0.4, 0.3, 0.2]
"""Ratios 2, 1/2, 3, 1/2; products of those before each token 1, 2, 1, 3; of all of them 3/2."""


def logs(probabilities: list[float]) -> Any:
    return torch.tensor([math.log(p) for p in probabilities])


@pytest.mark.parametrize(
    ("kind", "clip", "expected"),
    [
        ("prefix", 2.5, [1, 2, 1, 2.5]),
        ("prefix", 10, [1, 2, 1, 3]),
        ("prefix", 1, [1, 1, 1, 1]),
        ("sequence", 2, [1.5, 1.5, 1.5, 1.5]),
        ("sequence", 1.25, [1.25, 1.25, 1.25, 1.25]),
    ],
)
def test_weights_by_hand(kind: Any, clip: float, expected: list[float]) -> None:
    settings = RolloutSettings(importance=kind, importance_clip=clip)
    assert importance(logs(NOW), logs(THEN), settings).tolist() == pytest.approx(expected, rel=1e-6)


def test_only_rollouts_of_an_older_adapter_are_weighed() -> None:
    """Three trajectories behind each other: a stale rollout of four tokens, a fresh one, and the expert's turn."""
    then = logs(THEN).tolist()
    rollouts = [
        Rollout([5, 6, 7, 8, 9], True, [*then, -1.0], staleness=2),  # its fifth token has no loss
        Rollout([5, 6], True, then[:2]),
        Rollout([5], True),
    ]
    token_weights = torch.tensor([0.1, 0.0, 0.2, 0.1, 0.3, 0.2, 0.1])
    now = torch.cat([logs(NOW), logs([0.9, 0.9]), logs([0.5])])
    found = weighed(token_weights, now, rollouts, [4, 2, 1], RolloutSettings(importance_clip=2.5))
    assert found.tolist() == pytest.approx([0.1, 0.0, 0.2, 0.25, 0.3, 0.2, 0.1])
    assert not is_weighed(rollouts[0], RolloutSettings(importance="off"))
    off = weighed(token_weights, now, rollouts, [4, 2, 1], RolloutSettings(importance="off"))
    assert torch.equal(off, token_weights)


def test_untruncated_weights_have_the_expectation_of_the_students_own_rollouts() -> None:
    """Two tokens out of two words, all four rollouts: sum_y then(y) c_t(y) f(y_<t) = sum_y now(y) f(y_<t)."""
    first = {"now": [0.7, 0.3], "then": [0.4, 0.6]}
    second = {"now": [[0.2, 0.8], [0.5, 0.5]], "then": [[0.6, 0.4], [0.1, 0.9]]}
    value = [2.0, 5.0]  # of the second position, by the first word
    wanted = sum(first["now"][a] * value[a] for a in (0, 1))
    for kind in ("prefix", "sequence"):
        settings = RolloutSettings(importance=kind, importance_clip=100)
        total = 0.0
        for a in (0, 1):
            for b in (0, 1):
                now = logs([first["now"][a], second["now"][a][b]])
                then = logs([first["then"][a], second["then"][a][b]])
                chance = first["then"][a] * second["then"][a][b]
                total += chance * float(importance(now, then, settings)[1]) * value[a]
        assert total == pytest.approx(wanted, rel=1e-6)
