from __future__ import annotations

from itertools import pairwise

import pytest

pytest.importorskip("torch")

from sdft_cli.config import TrainConfig, load_train_config
from sdft_cli.engine.objective.schedules import flags_at, objective_at, rate_factor, rollout_at

ON = "distill.lambda_on_policy=1"


def config(*settings: str) -> TrainConfig:
    return load_train_config("cpu-demo", ["optim.turns_per_step=4", "optim.max_steps=200", ON, *settings])


def test_the_rate_rises_then_stays_or_falls() -> None:
    def factors(schedule: str) -> list[float]:
        optim = config("optim.warmup_steps=2", "optim.max_steps=6", f"optim.schedule={schedule}").optim
        return [rate_factor(optim, step) for step in range(7)]

    assert factors("constant") == [0.5, 1, 1, 1, 1, 1, 1]
    assert factors("linear") == [0.5, 1, 1, 0.75, 0.5, 0.25, 0]


def caps(*settings: str) -> list[int]:
    found = config("rollout.max_new_tokens=10", *settings)
    return [rollout_at(found, step).max_new_tokens for step in range(1, 8)]


def test_the_cap_of_rollouts_grows_and_then_stays() -> None:
    assert caps("rollout.start_tokens=null") == [10] * 7
    assert caps("rollout.start_tokens=2", "rollout.grow_steps=4") == [2, 4, 6, 8, 10, 10, 10]
    assert caps("rollout.start_tokens=2", "rollout.grow_steps=3") == [2, 4, 7, 10, 10, 10, 10]
    assert caps("rollout.start_tokens=900") == [10] * 7
    after = ("teacher.start=2", "rollout.start_tokens=2", "rollout.grow_steps=4")
    assert caps(*after) == [2, 2, 2, 4, 6, 8, 10]


def shares(found: TrainConfig, steps: range) -> list[float]:
    return [sum(flags_at(found, step, 4 * (step - 1 - found.teacher.start), 4)) / 4 for step in steps]


def test_the_share_of_own_rollouts_moves_with_the_step() -> None:
    rising = shares(config("distill.lambda_start=0", "distill.lambda_steps=100"), range(1, 201))
    assert sum(rising[:100]) == pytest.approx(50, abs=0.5)
    assert sum(rising[:50]) == pytest.approx(12.5, abs=0.5)  # the area of half the triangle
    assert rising[100:] == [1] * 100
    falling = shares(
        config("distill.lambda_start=1", "distill.lambda_on_policy=0.25", "distill.lambda_steps=40"), range(1, 201)
    )
    assert sum(falling[:40]) == pytest.approx(40 * 0.625, abs=0.5)
    assert sum(falling[40:]) == pytest.approx(160 * 0.25, abs=0.5)


def test_whole_steps_are_on_policy_or_not() -> None:
    half = shares(config("distill.lambda_by=step", "distill.lambda_on_policy=0.5"), range(1, 41))
    assert set(half) == {0, 1}
    assert all(a != b for a, b in pairwise(half))
    rising = shares(
        config("distill.lambda_by=step", "distill.lambda_start=0", "distill.lambda_steps=100"), range(1, 201)
    )
    assert set(rising) == {0, 1}
    assert sum(rising[:50]) == pytest.approx(12.5, abs=1)
    assert rising[100:] == [1] * 100
    after = ("teacher.start=3", "distill.lambda_by=step", "distill.lambda_on_policy=0.5")
    assert shares(config(*after), range(1, 44)) == [0] * 3 + half


def test_after_a_start_schedules_begin() -> None:
    found = config("teacher.start=30", "distill.lambda_start=0", "distill.lambda_steps=10")
    assert [objective_at(found, step) for step in (1, 30, 31, 200)] == ["sft", "sft", "sdft", "sdft"]
    assert objective_at(config("objective=sft"), 9) == "sft"
    assert shares(found, range(1, 31)) == [0] * 30
    plain = config("distill.lambda_start=0", "distill.lambda_steps=10")
    assert shares(found, range(31, 51)) == shares(plain, range(1, 21))
