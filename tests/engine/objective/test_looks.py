from __future__ import annotations

import pytest

pytest.importorskip("torch")

from hypothesis import given
from hypothesis import strategies as st

from sdft_cli.config import TrainConfig, load_train_config
from sdft_cli.engine.objective.batches import Order
from sdft_cli.engine.objective.looks import Looks
from sdft_cli.engine.objective.schedules import flags_at
from sdft_cli.records import RecordRow


def looks(sessions: list[int], *settings: str) -> tuple[Looks, TrainConfig, Order]:
    """Those of a run of 60 steps of 8 turns over sessions of so many turns."""
    rows = [
        RecordRow(f"s{number}/{i}", f"s{number}", i, 10, 12, 3, False)
        for number, count in enumerate(sessions)
        for i in range(count)
    ]
    common = ("optim.turns_per_step=8", "optim.max_steps=60", "distill.lambda_on_policy=1", "samples_every=10")
    config = load_train_config("cpu-demo", [*common, *settings])
    order = Order(rows, config.optim, config.seed)
    return Looks(config, order), config, order


def own(sessions: list[int], *settings: str) -> list[int]:
    """How many turns of each step the student answers."""
    found, config, order = looks(sessions, *settings)
    return [sum(flags_at(config, n, found.first(n), len(order.step(n)))) for n in range(1, 61)]


def chosen(*settings: str) -> tuple[list[int], list[int]]:
    found, _, _ = looks([40], *settings)
    steps = range(1, 61)
    return [n for n in steps if found.compares(n)], [n for n in steps if found.saves(n)]


def test_every_tenth_step_and_the_last_where_all_are_on_policy() -> None:
    assert chosen() == ([1, 11, 21, 31, 41, 51], [1, 10, 20, 30, 40, 50, 60])
    assert chosen("rollout.gap_every=25", "samples_every=25") == ([1, 26, 51], [1, 25, 50, 60])
    assert chosen("rollout.gap_every=null", "samples_every=1")[0] == []
    assert chosen("lora.dropout=0.1")[0] == []  # its noise would be taken for a gap
    assert chosen("rollout.gap_every=1", "samples_every=1") == ([*range(1, 61)], [*range(1, 61)])


def test_without_a_rollout_of_the_student_the_steps_are_the_same() -> None:
    assert chosen("objective=sft") == chosen()
    assert chosen("distill.lambda_on_policy=0") == chosen()


@given(st.integers(0, 30), st.sampled_from([0.05, 0.1, 0.2, 0.34, 0.5, 0.9]), st.sampled_from([1, 4, 10]))
def test_a_look_is_taken_in_the_first_step_with_a_rollout_of_the_student(seed: int, share: float, every: int) -> None:
    """Every tenth step would always be the same one of a pattern of ten."""
    settings = ("distill.lambda_by=step", f"distill.lambda_on_policy={share}", f"seed={seed}")
    own_steps = [n for n, count in enumerate(own([40], *settings), 1) if count]
    compares, saves = chosen(*settings, f"rollout.gap_every={every}", f"samples_every={every}")
    for due in range(1, 61, every):
        among = [n for n in own_steps if due <= n < due + every]
        assert [n for n in compares if due <= n < due + every] == [min(among, default=due)]
    for due in range(every, 60, every):
        window = range(due, due + every)
        among = [n for n in own_steps if n in window]
        assert {n for n in saves if n in window} == {min(among, default=due)} | {60} & {*window}


def test_behind_a_start_each_turn_has_its_share_where_epochs_end_in_a_short_step() -> None:
    """Nine turns by session are steps of 8 and of 1, so 20 steps have 90 turns and not 160."""
    by_session = ("optim.group_by=session", "teacher.start=20")
    found, _, order = looks([3, 3, 3], *by_session)
    assert [order.span(n)[1] for n in range(1, 5)] == [8, 1, 8, 1]
    assert [found.first(n) for n in (1, 20, 21, 22, 23)] == [-90, -1, 0, 8, 9]
    assert own([3, 3, 3], *by_session) == [0] * 20 + [8, 1] * 20
    rising = (*by_session, "distill.lambda_start=0", "distill.lambda_steps=2")  # 16 turns
    assert own([3, 3, 3], *rising)[24:] == [8, 1] * 18


def test_the_trajectory_that_is_saved_is_the_students() -> None:
    """Also where the expert's turns, one trajectory each, stand before its samples."""
    settings = ("distill.lambda_by=turn", "distill.lambda_on_policy=0.2", "rollout.per_record=3")
    found, config, _ = looks([40], *settings)
    places = [found.trajectory(n) for n in range(1, 31)]
    for n, place in enumerate(places, 1):
        flags = flags_at(config, n, 8 * (n - 1), 8)
        owners = [own for own in flags for _ in range(3 if own else 1)]
        assert owners[place] is any(owners)
        assert not any(owners[:place])
    assert len({*places}) > 3
