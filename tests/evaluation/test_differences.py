from __future__ import annotations

import pytest

from sdft_cli.evaluation.differences import difference, differences
from sdft_cli.metrics import METRICS
from tests.test_metrics import TOOL, item


def test_a_difference_is_paired_and_counts_what_differs() -> None:
    a = [item("a", "s", flags=TOOL | {"exact": True}), item("b", "t", flags=TOOL), item("c", "u")]
    b = [item("a", "s", flags=TOOL), item("b", "t", flags=TOOL), item("c", "u")]
    found = difference(METRICS["tool_exact_share"], a, b, 0.95, 200, 0)
    assert found is not None
    assert (found.interval.value, found.items, found.discordant) == (0.5, 2, 1)
    assert found.interval.sessions == 2
    assert difference(METRICS["tool_exact_share"], a[2:], b[2:], 0.95, 200, 0) is None
    with pytest.raises(ValueError, match="same items"):
        difference(METRICS["kl_per_token"], a, b[::-1], 0.95, 200, 0)


def test_something_against_itself_is_exactly_nothing() -> None:
    items = [item(str(i), f"s{i % 3}", nll=0.1 * i, flags=TOOL if i % 2 else {}) for i in range(9)]
    for metric in METRICS.values():
        if metric.about == "records":
            found = difference(metric, items, items, 0.95, 200, 0)
            assert found is not None
            assert (found.interval.value, found.discordant, found.interval.degenerate) == (0.0, 0, True)
            low, high = found.interval.low, found.interval.high
            assert low is not None
            assert high is not None
            assert (low < 0 < high) if metric.yes_or_no else (low == high == 0)


def test_sessions_that_share_text_are_one_observation() -> None:
    a = [item(str(i), f"s{i}", group=f"g{i // 2}", nll=float(i)) for i in range(20)]
    b = [item(str(i), f"s{i}", group=f"g{i // 2}", nll=float(i % 5)) for i in range(20)]
    found = difference(METRICS["expert_nll_per_token"], a, b, 0.95, 200, 0)
    assert found is not None
    assert found.interval.sessions == 10
    assert found.to_json()["few_sessions"] is False


def test_rounding_is_no_difference() -> None:
    a, b = [item("a", "s", nll=4.0), item("b", "t", nll=4.0)], [item("a", "s", nll=4.0 + 1e-9), item("b", "t", nll=5.0)]
    found = difference(METRICS["expert_nll_per_token"], a, b, 0.95, 200, 0)
    assert found is not None
    assert found.discordant == 1
    assert found.to_json()["few_sessions"] is True


def test_models_differ_in_what_both_have() -> None:
    drift = {"items": [{"prompt_id": "p", "kl": 1.0, "tokens": 2, "same_top": 1, "entropy": 1.0}]}
    tasks = {"higher_is_better": {"t/acc": True}, "items": [{"document": "t/0", "values": {"t/acc": 1.0}}]}
    a = {"items": [item("a", "s")], "drift": drift, "harness": tasks}
    records = {key for key, metric in METRICS.items() if metric.about == "records"}
    assert set(differences(a, {"items": a["items"]}, 0.95, 200, 0)) == records
    found = differences(a, a, 0.95, 200, 0)
    # The percentiles are no ratios of sums over items, so no pairs of items differ in them.
    assert set(found) == records | {"drift_kl", "drift_same_top", "entropy", "t/acc"}
    assert found["tool_named_share"] is None  # no item counts
    assert found["t/acc"]["items"] == 1
