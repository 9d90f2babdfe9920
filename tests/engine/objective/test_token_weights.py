from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from sdft_cli.config import DistillSettings
from sdft_cli.engine.objective.token_weights import loss_range, on_policy_flags, step_seed, token_weights
from sdft_cli.engine.passes.decode import Rollout


@given(st.floats(0, 1), st.integers(0, 50), st.integers(1, 7), st.integers(1, 40))
def test_the_share_of_on_policy_records_is_the_stated_one(share: float, seed: int, size: int, steps: int) -> None:
    flags = list(chain.from_iterable(on_policy_flags(share, seed, step * size, size) for step in range(steps)))
    for stop in range(1, len(flags) + 1):
        assert abs(sum(flags[:stop]) - share * stop) <= 1 + 1e-9


def test_the_ends_of_the_share_are_all_or_nothing() -> None:
    assert on_policy_flags(0.0, 3, 5, 64) == [False] * 64
    assert on_policy_flags(1.0, 3, 5, 64) == [True] * 64
    half = [flag for step in range(50) for flag in on_policy_flags(0.5, 3, 4 * step, 4)]
    assert sum(half) == 100


def test_seeds_differ_by_step_and_purpose() -> None:
    seeds = {step_seed(0, step, purpose) for step in range(50) for purpose in ("rollout", "step")}
    assert len(seeds) == 100
    assert step_seed(0, 1, "rollout") == step_seed(0, 1, "rollout") != step_seed(1, 1, "rollout")


ROLLOUTS = [Rollout([1, 2, 3, 4], True), Rollout([5, 6], False)]


def weights_of(**settings: object) -> list[list[float]]:
    return token_weights(ROLLOUTS, DistillSettings.model_validate(settings))


def test_weights_of_tokens_by_hand() -> None:
    assert weights_of() == [[1 / 6] * 4, [1 / 6] * 2]
    assert weights_of(average="sequences") == [[1 / 8] * 4, [1 / 4] * 2]
    assert weights_of(skip_first_tokens=1) == [[0, 1 / 4, 1 / 4, 1 / 4], [0, 1 / 4]]
    assert weights_of(skip_first_tokens=3) == [[0, 0, 0, 1], []]
    assert weights_of(max_loss_tokens=1) == [[1 / 2], [1 / 2]]
    assert weights_of(max_loss_tokens=2, skip_first_tokens=1) == [[0, 1 / 3, 1 / 3], [0, 1 / 3]]
    assert weights_of(truncated_rollouts="mask") == [[1 / 4] * 4, []]
    assert weights_of(truncated_rollouts="mask", average="sequences") == [[1 / 4] * 4, []]
    assert weights_of(skip_first_tokens=9) == [[], []]


@given(
    st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=6),
    st.integers(0, 14),
    st.none() | st.integers(1, 14),
    st.sampled_from(["keep", "mask"]),
    st.sampled_from(["tokens", "sequences"]),
)
def test_weights_add_up_to_one_or_nothing(
    shapes: list[tuple[int, bool]], skip: int, cap: int | None, truncated: str, average: str
) -> None:
    settings = DistillSettings.model_validate(
        {"skip_first_tokens": skip, "max_loss_tokens": cap, "truncated_rollouts": truncated, "average": average}
    )
    rollouts = [Rollout(list(range(length)), finished) for length, finished in shapes]
    found = token_weights(rollouts, settings)
    total = sum(map(sum, found))
    assert total == pytest.approx(1) or total == 0
    for rollout, share in zip(rollouts, found, strict=True):
        assert len([w for w in share if w]) == len(loss_range(rollout, settings))
        assert not share or share[-1] > 0
