from __future__ import annotations

from itertools import chain, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from sdft_cli.config import OptimSettings
from sdft_cli.engine.objective.batches import Order, on_policy_flags, step_seed
from sdft_cli.records import RecordRow


def order(turns: list[int], seed: int = 0, **settings: object) -> Order:
    """The order over sessions of so many turns each."""
    rows = [
        RecordRow(f"s{number}/{i}", f"s{number}", i, 10, 12, 3, False)
        for number, count in enumerate(turns)
        for i in range(count)
    ]
    return Order(rows, OptimSettings.model_validate(settings), seed)


def drawn(found: Order, steps: int) -> list[list[int]]:
    return [found.step(number) for number in range(1, steps + 1)]


def test_without_groups_an_epoch_is_a_permutation_that_depends_on_the_seed() -> None:
    flat = list(chain(*drawn(order([10]), 20)))
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:]
    assert flat == list(chain(*drawn(order([10], turns_per_step=4), 5)))  # the size of a step does not change the order
    assert flat != list(chain(*drawn(order([10], seed=1), 20)))
    assert order([10], turns_per_step=4).span(3) == (8, 4)


SESSIONS = st.lists(st.integers(1, 12), min_size=1, max_size=6)


@given(SESSIONS, st.integers(1, 7), st.integers(0, 5), st.sampled_from(["consecutive", "spread"]))
def test_by_session_each_epoch_has_each_turn_once(turns: list[int], size: int, seed: int, how: str) -> None:
    found = order(turns, seed, turns_per_step=size, group_by="session", session_turns=how)
    per_epoch = -(-sum(turns) // size)
    steps = drawn(found, 2 * per_epoch)
    spans = [found.span(number) for number in range(1, 2 * per_epoch + 1)]
    for epoch in (steps[:per_epoch], steps[per_epoch:]):
        assert sorted(chain(*epoch)) == list(range(sum(turns)))
        assert [len(step) for step in epoch[:-1]] == [size] * (per_epoch - 1)
    assert spans == [(sum(map(len, steps[:i])), len(steps[i])) for i in range(len(steps))]
    whole = [step for step in steps if len({found.rows[i].session_id for i in step}) == 1 and len(step) == size]
    assert len(whole) >= 2 * sum(count // size for count in turns)


def test_consecutive_turns_are_neighbours_and_spread_ones_are_not() -> None:
    near = drawn(order([12], turns_per_step=3, group_by="session"), 4)
    assert sorted(near) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    far = drawn(order([12], turns_per_step=3, group_by="session", session_turns="spread"), 4)
    assert sorted(far) == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]


def test_left_over_turns_stay_beside_those_of_their_session() -> None:
    found = order([5, 5, 5, 5], turns_per_step=4, group_by="session")
    steps = drawn(found, 5)
    assert sorted(map(len, steps)) == [4, 4, 4, 4, 4]
    mixed = [step for step in steps if len({found.rows[i].session_id for i in step}) > 1]
    assert [sorted(step) for step in mixed] == [[4, 9, 14, 19]]


def test_steps_of_one_session_are_not_one_after_the_other() -> None:
    found = order([16, 16, 16, 16], turns_per_step=2, group_by="session")
    sessions = [found.rows[step[0]].session_id for step in drawn(found, 32)]
    assert sum(a == b for a, b in pairwise(sessions)) < 16  # 28 if sessions came one after the other


def test_a_step_does_not_depend_on_those_asked_for_before() -> None:
    settings = {"turns_per_step": 3, "group_by": "session"}
    fresh = [order([7, 4, 9], **settings).step(number) for number in (9, 1, 14, 2)]
    one = order([7, 4, 9], **settings)
    assert [one.step(number) for number in (9, 1, 14, 2)] == fresh


@given(st.floats(0, 1), st.integers(0, 50), st.integers(1, 7), st.integers(1, 40))
def test_the_share_of_on_policy_records_is_the_stated_one(share: float, seed: int, size: int, steps: int) -> None:
    flags = list(chain.from_iterable(on_policy_flags(share, seed, step * size, size) for step in range(steps)))
    for stop in range(1, len(flags) + 1):
        assert abs(sum(flags[:stop]) - share * stop) <= 1 + 1e-9


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 60), st.integers(0, 50), st.integers(1, 7))
def test_a_share_that_moves_is_kept_over_any_stretch(
    start: float, share: float, over: int, seed: int, size: int
) -> None:
    """The share of turn k is that of the line at its middle, k + 1/2."""
    flags = [f for step in range(20) for f in on_policy_flags(share, seed, step * size, size, start, over)]
    line = [start + (share - start) * min(1.0, (k + 0.5) / over) for k in range(len(flags))]
    for stop in range(1, len(flags) + 1):
        assert abs(sum(flags[:stop]) - sum(line[:stop])) <= 1 + 1e-6
    assert on_policy_flags(share, seed, 7, 9, share, over) == on_policy_flags(share, seed, 7, 9)


def test_early_turns_come_in_proportion_to_the_decay() -> None:
    """One turn of each session a round; of four turns with d = 1/2, the shares are 8, 4, 2, 1 of 15."""
    found = order([4, 1, 4], turns_per_step=3, position_decay=0.5)
    steps = drawn(found, 3000)
    for step in steps[:50]:
        assert sorted(found.rows[i].session_id for i in step) == ["s0", "s1", "s2"]
    turns = [found.rows[i].turn_index for step in steps for i in step if found.rows[i].session_id != "s1"]
    for turn, share in enumerate((8, 4, 2, 1)):
        assert turns.count(turn) / len(turns) == pytest.approx(share / 15, abs=0.03)
    again = order([4, 1, 4], turns_per_step=3, position_decay=0.5)
    assert [again.step(n) for n in (9, 2, 9)] == [steps[8], steps[1], steps[8]]
    assert drawn(order([4, 1, 4], seed=1, turns_per_step=3, position_decay=0.5), 20) != steps[:20]
    assert found.span(5) == (12, 3)
    assert set(chain(*drawn(order([9, 9], position_decay=1e-9), 40))) == {0, 9}


def test_the_ends_of_the_share_are_all_or_nothing() -> None:
    assert on_policy_flags(0.0, 3, 5, 64) == [False] * 64
    assert on_policy_flags(1.0, 3, 5, 64) == [True] * 64
    half = [flag for step in range(50) for flag in on_policy_flags(0.5, 3, 4 * step, 4)]
    assert sum(half) == 100


def test_seeds_differ_by_step_and_purpose() -> None:
    seeds = {step_seed(0, step, purpose) for step in range(50) for purpose in ("rollout", "step")}
    assert len(seeds) == 100
    assert step_seed(0, 1, "rollout") == step_seed(0, 1, "rollout") != step_seed(1, 1, "rollout")
