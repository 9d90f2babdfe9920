from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdft_cli.config import StopSettings
from sdft_cli.engine.train.stop_rules import Finding, StopRules
from sdft_cli.errors import DataError


def evaluation(length: float = 20, valid: float | None = 0.8, kl: float = 0.5, nll: float = 1.0) -> dict[str, Any]:
    return {"rollout_length": length, "tool_valid_share": valid, "kl_per_token": kl, "expert_nll_per_token": nll}


def found(rules: StopRules, *metrics: dict[str, Any]) -> list[list[str]]:
    return [[f.rule for f in rules.after_evaluation(m)] for m in metrics]


def test_a_loss_or_gradient_that_is_not_finite_stops() -> None:
    rules = StopRules(StopSettings())
    assert rules.after_step({"loss": 1.0, "grad_norm": 0.0}) == []
    assert rules.after_step({"loss": math.nan, "grad_norm": math.inf}) == [
        Finding(
            "not_finite",
            "stop",
            "loss is nan and grad_norm is inf: go back to the last checkpoint with a lower optim.learning_rate.",
        )
    ]
    assert found(rules, evaluation(kl=math.nan), evaluation(nll=math.inf)) == [["not_finite"], ["not_finite"]]
    assert rules.recent_kl == []


def test_the_gap_between_sampler_and_trainer() -> None:
    rules = StopRules(StopSettings(max_sampler_gap=0.1))
    step = {"loss": 1.0, "grad_norm": 1.0}
    assert rules.after_step({**step, "sampler_gap": None}) == []
    assert rules.after_step({**step, "sampler_gap": 0.1}) == []
    for gap in (0.11, math.nan):
        (finding,) = rules.after_step({**step, "sampler_gap": gap})
        assert (finding.rule, finding.action) == ("sampler_gap", "stop")
        assert f"disagree by {gap:.3g} nats per token (limit 0.1)" in finding.message


def test_length_is_held_against_the_first_evaluation() -> None:
    rules = StopRules(StopSettings(length_share=0.1))
    assert found(rules, *(evaluation(length=x) for x in (200, 400, 20, 19.9, 21))) == [
        [],
        [],
        [],
        ["length_collapse"],
        [],
    ]
    (finding,) = rules.after_evaluation(evaluation(length=5))
    assert finding.action == "warn"
    assert "5.0 tokens long, below 0.1 of the 200.0 at the first evaluation" in finding.message


def test_validity_is_held_against_the_best_evaluation_before() -> None:
    rules = StopRules(StopSettings(validity_share=0.5))
    assert found(rules, *(evaluation(valid=x) for x in (0.0, 0.2, None, 0.8, 0.4, 0.39, 0.9, 0.44))) == [
        [],
        [],
        [],
        [],
        [],
        ["validity_collapse"],
        [],
        ["validity_collapse"],
    ]
    (finding,) = rules.after_evaluation(evaluation(valid=0.25))
    assert "25.0% of the held-out tool turns are valid calls, below 0.5 of the 90.0%" in finding.message


def test_kl_has_to_rise_so_many_times_in_a_row() -> None:
    rules = StopRules(StopSettings(kl_rising_evaluations=2))
    assert found(rules, *(evaluation(kl=x) for x in (0.1, 0.2, 0.2, 0.3, 0.4, 0.5, 0.45))) == [
        [],
        [],
        [],
        [],
        ["kl_rising"],
        ["kl_rising"],
        [],
    ]
    started = StopRules(StopSettings(kl_rising_evaluations=2))  # of another teacher: 0.1, 0.2; of the next: 0.3, 0.4
    values = [(0.1, False), (0.2, False), (0.3, True), (0.4, True), (0.5, True)]
    broken = [[f.rule for f in started.after_evaluation(evaluation(kl=x), same)] for x, same in values]
    assert broken == [[], [], [], [], ["kl_rising"]]
    one = StopRules(StopSettings(kl_rising_evaluations=1))
    assert found(one, *(evaluation(kl=x) for x in (0.1, 0.2, 0.1))) == [[], ["kl_rising"], []]


def test_a_rule_that_is_off_finds_nothing_and_actions_are_the_settings() -> None:
    off = dict.fromkeys(("not_finite", "length_collapse", "validity_collapse", "kl_rising", "sampler_gap"), "off")
    quiet = StopRules(StopSettings.model_validate(off))
    assert quiet.after_step({"loss": math.nan, "grad_norm": math.nan, "sampler_gap": 9.0}) == []
    assert found(quiet, evaluation(), evaluation(1, 0.0)) == [[], []]
    strict = StopRules(StopSettings(length_collapse="stop", not_finite="warn"))
    strict.after_evaluation(evaluation())
    assert [f.action for f in strict.after_evaluation(evaluation(1))] == ["stop"]
    assert [f.action for f in strict.after_step({"loss": math.nan, "grad_norm": 1.0})] == ["warn"]


EVALUATIONS = st.lists(
    st.builds(
        evaluation,
        st.integers(1, 100).map(float),
        st.none() | st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9]),
        st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5, math.nan]),
    ),
    max_size=12,
)


@given(EVALUATIONS, st.integers(0, 12), st.integers(1, 3))
def test_a_resumed_run_finds_what_an_uninterrupted_one_finds(
    evaluations: list[dict[str, Any]], cut: int, rises: int
) -> None:
    settings = StopSettings(kl_rising_evaluations=rises, length_share=0.5)
    whole = StopRules(settings)
    expected = [whole.after_evaluation(m) for m in evaluations]
    first, second = StopRules(settings), StopRules(settings)
    before = [first.after_evaluation(m) for m in evaluations[:cut]]
    second.restore(json.loads(json.dumps(first.state(), allow_nan=False)))
    assert before + [second.after_evaluation(m) for m in evaluations[cut:]] == expected
    assert second.state() == whole.state()


def test_a_damaged_memory_is_refused() -> None:
    with pytest.raises(DataError, match="resume from an older one"):
        StopRules(StopSettings()).restore({"first_length": 1.0})
