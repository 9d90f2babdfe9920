"""The simulation of many GPUs by hand: one rank is what was measured, and work that divides takes exactly 1/N."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch")

from benchmarks.nodes import Cluster, Division, MeasuredStep, scale, sentence, slowness, table
from benchmarks.simulate_nodes import answer_lengths, decoding_steps, divided, given, measured
from sdft_cli.config import load_train_config
from sdft_cli.engine.plan.network import Ring
from sdft_cli.records import Record, RecordRow, Session

PHASES = {"rollout": 3.0, "teacher": 1.0, "student": 1.5, "loss": 0.25, "backward": 2.25}
FREE = Cluster(8, math.inf, math.inf, 0.0, 0.0)
EVEN = 64


def evenly(count: int) -> Division:
    """As many turns as there may be ranks, all alike and decoded apart."""
    parts = [1 / count] * count
    return Division(parts, parts, parts)


def found(step: MeasuredStep, count: int, cluster: Cluster = FREE, spread: float = 0.0, gradients: float = 0.0) -> Any:
    return scale([step], count, cluster.ring(count), gradients, "decoding", spread, 0)


def test_one_rank_is_what_was_measured() -> None:
    step = MeasuredStep({**PHASES, "encode": 0.5, "optimizer": 0.125}, evenly, EVEN, sent=1e9)
    at = found(step, 1, Cluster(8, 1.0, 1.0, 1.0, 1.0), spread=0.5, gradients=1e9)
    assert at.seconds == at.one == 8.625
    assert at.efficiency == 1
    assert set(at.lost.values()) == {0.0}


@pytest.mark.parametrize("count", [2, 4, 8, 16, 32, 64])
def test_work_that_divides_on_a_free_network_takes_exactly_one_part(count: int) -> None:
    at = found(MeasuredStep(PHASES, evenly, EVEN), count)
    assert at.seconds == 8.0 / count
    assert at.efficiency == 1
    assert max(at.lost.values()) == pytest.approx(0)


def test_every_loss_by_hand() -> None:
    """Two ranks: the first samples 3/4 and scores 1/4; what is not divided, and a network of 1 GB/s."""
    division = Division([0.75, 0.25], [0.75, 0.25], [0.25, 0.75])
    step = MeasuredStep({"rollout": 4.0, "backward": 8.0, "encode": 1.0}, lambda _: division, 2, sent=0.5e9)
    at = found(step, 2, Cluster(8, 1e9, 1e6, 0.1, 9.0), gradients=2e9)
    # Gradients go round as halves, twice; rollouts as halves, once; three hops of 0.1 s.
    network = 2 * (0.1 + 1.0) + 0.1 + 0.25
    assert at.lost["the network"] == pytest.approx(network)
    assert at.lost["the largest share"] == pytest.approx((0.75 - 0.5) * (4 + 8))
    assert at.lost["what every rank does"] == pytest.approx(0.5)
    assert at.lost["stragglers"] == 0
    assert at.seconds == pytest.approx(0.75 * 4 + 0.75 * 8 + 1 + network)
    assert at.seconds == pytest.approx(at.one / 2 + sum(at.lost.values()))
    assert at.limit == "the largest share"
    assert (at.working, at.largest) == (2, 0.75)
    assert found(step, 2, Cluster(1, 1e9, 0.5e9, 0.1, 0.2), gradients=2e9).lost["the network"] == pytest.approx(
        2 * (0.2 + 2.0) + 0.2 + 0.5  # in two machines
    )


def test_all_wait_for_the_slowest() -> None:
    assert slowness(1, 0.3, "0:0") == [1.0]
    assert slowness(3, 0.0, "0:0") == [1.0] * 3
    slow = slowness(64, 0.3, "0:0")
    assert slow[:8] == slowness(8, 0.3, "0:0")
    assert slow != slowness(64, 0.3, "1:0")
    assert min(slow) >= 1
    assert sum(math.log(x) for x in slow) / 64 == pytest.approx(0.3 * math.sqrt(2 / math.pi), rel=0.25)
    at = found(MeasuredStep(PHASES, evenly, EVEN), 64, spread=0.3)
    assert at.seconds == pytest.approx(8 / 64 * max(slow))
    assert at.limit == "stragglers"
    assert at.lost["stragglers"] == pytest.approx(8 / 64 * (max(slow) - 1))


def of(turns: int) -> Callable[[int], Division]:
    def divide(count: int) -> Division:
        parts = [1 / min(count, turns)] * min(count, turns) + [0.0] * max(0, count - turns)
        return Division(parts, parts, parts)

    return divide


def test_turns_per_step_are_the_ceiling() -> None:
    step = MeasuredStep(PHASES, of(8), 8)
    scales = [found(step, n) for n in (1, 2, 4, 8, 16, 32, 64)]
    assert [at.faster for at in scales] == [1, 2, 4, 8, 8, 8, 8]
    assert scales[-1].efficiency == 8 / 64
    assert sentence(scales) == (
        "It stops scaling at 8 GPUs (8.0 times as fast as one): 16 GPUs (8.0 times as fast as one), since 8 turns a "
        "step cannot feed 16 ranks: 8.0 ranks have work, and the largest share is 12% of a step's tokens."
    )
    assert "| 64 | 1.000 | 8.00 | 12% | 8.0 | 12% | the largest share |" in table(scales)
    assert sentence(scales[:4]).startswith("It scales up to 8 GPUs (8.0 times as fast as one); ")
    slow = [found(step, n, Cluster(8, 1e9, 1e9, 0.0, 0.0), gradients=8e9) for n in (1, 2)]
    assert sentence(slow).startswith("It stops scaling at 1 GPU (1.0 times as fast as one): 2 GPUs (")
    assert "through the network" in sentence(slow)


CONFIG = load_train_config("cpu-demo", ["rollout.max_new_tokens=8", "rollout.max_tokens_per_pass=40"])


def test_a_step_divides_by_the_rule_of_the_run() -> None:
    """A session of two turns and another one: by hand with prefixes shared, and without."""
    one, other = list(range(10)), list(range(100, 108))
    prompts = [one[:6], one, other]
    shared = divided(prompts, [2, 4, 3], [True, True, True], True, CONFIG, 2)
    # Distinct prompt tokens 10 and 8, with answers 10 + 6 and 8 + 3; trajectories the same.
    assert shared.sampling == [16 / 27, 11 / 27]
    assert shared.turns == [16 / 27, 11 / 27]
    apart = divided(prompts, [2, 4, 3], [True, True, True], False, CONFIG, 2)
    assert sorted(apart.turns) == [11 / 33, 22 / 33]
    alone = divided(prompts, [2, 4, 3], [True, True, True], True, CONFIG, 1)
    assert (alone.sampling, alone.decoding, alone.turns) == ([1.0], [1.0], [1.0])


def test_decoding_takes_as_long_as_the_longest_answer_of_each_batch() -> None:
    # 40 padded tokens hold two prompts of 12 with 8 new ones each.
    assert decoding_steps([12, 12], [3, 7], CONFIG) == 7
    assert decoding_steps([12, 12, 12], [3, 7, 5], CONFIG) == 12
    assert decoding_steps([], [], CONFIG) == 0
    step = divided([[1] * 12, [2] * 12], [3, 7], [True, True], True, CONFIG, 2)
    assert step.decoding == [3 / 7, 1.0]  # a batch of two takes no longer than its longest


def test_steps_of_the_experts_turns_sample_nothing() -> None:
    step = divided([[1, 2], [3, 4]], [2, 2], [False, False], True, CONFIG, 2)
    assert step.turns == [0.5, 0.5]
    assert step.decoding == [1.0, 1.0]  # of nothing


def test_lengths_of_answers_add_up_to_what_was_measured() -> None:
    lengths = answer_lengths([5, 9, 7], [True, False, True], 39, [4, 6], "0:1")
    assert lengths[1] == 9
    assert sum(lengths) == pytest.approx(39, abs=1)
    assert sorted((lengths[0], lengths[2])) in ([15, 15], [12, 18])  # in the proportions of 4 and 6
    assert answer_lengths([5, 9], [True, True], 10, [], "x") == [5, 5]


def test_a_line_of_metrics_becomes_a_step() -> None:
    rows = [RecordRow(f"s/{i}", "s", i, 4, 9, 3, False) for i in range(2)]
    records = [Record(row, Session("s", ())) for row in rows]
    line = {"step": 2, "rollout_tokens": 10, "phase_seconds": {"rollout": 1.0, "backward": 2.0}}
    step = measured(line, records, [True, True], [[1, 2, 3, 4], [5, 6, 7, 8]], True, CONFIG, [])
    assert (step.turns, step.sent) == (2, 40.0)
    at = found(step, 2)
    assert at.seconds == pytest.approx(1.0 + 2.0 / 2)  # two answers that were decoded in one batch
    assert scale([step], 2, Ring(2, math.inf), 0, "sampling", 0, 0).seconds == pytest.approx(1.5)


def test_seconds_that_are_given_take_the_place_of_measured_ones() -> None:
    assert given(["rollout=3", "backward=0.5"]) == {"rollout": 3.0, "backward": 0.5}
    for wrong in ("rollout", "rollout=x", "rollout=-1", "sampling=1"):
        with pytest.raises(SystemExit, match="NAME=SECONDS"):
            given([wrong])
