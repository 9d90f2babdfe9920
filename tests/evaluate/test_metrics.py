from __future__ import annotations

from typing import Any

import pytest

from sdft_cli.evaluate.metrics import BY_KEY, MEASURES, by_group, difference, mean, p95, summary


def item(name: str, session: str, **more: Any) -> dict[str, Any]:
    base = {
        "record_id": name,
        "session_id": session,
        "group": session,
        "nll": 4.0,
        "reference_tokens": 2,
        "kl": 1.0,
        "rollout_tokens": 4,
        "finished": True,
        "flags": {},
        "chrf": 50.0,
        "calls_unasked": False,
        "mentions_reference": False,
        "copied_share": 0.25,
        "unknown_paths": [],
        "tools": "",
        "position": "first turn",
    }
    return {**base, **more}


TOOL = dict.fromkeys(("terminated", "parsed", "named", "required", "known", "valid"), True) | {"exact": False}


def test_means_are_weighted_by_tokens_and_count_only_what_applies() -> None:
    items = [
        item("a", "s", nll=9.0, reference_tokens=3, kl=0.5, rollout_tokens=1),
        item("b", "t", flags=TOOL, chrf=None, unknown_paths=["/x"]),
    ]
    found = summary(items, "records")
    assert found["expert_nll_per_token"] == pytest.approx(13 / 5)
    assert found["kl_per_token"] == pytest.approx(1.5 / 5)
    assert found["rollout_length"] == 2.5
    assert (found["tool_named_share"], found["tool_exact_share"]) == (1.0, 0.0)
    assert (found["prose_chrf"], found["unasked_call_share"]) == (50.0, 0.0)
    assert found["unknown_path_share"] == 0.5
    assert set(found) == {m.key for m in MEASURES if m.about == "records"}
    assert mean(BY_KEY["tool_exact_share"], items[:1]) is None
    assert mean(BY_KEY["kl_per_token"], [item("a", "s", kl=0.0, rollout_tokens=0)]) is None


def test_groups_have_their_own_means() -> None:
    items = [item("a", "s", tools="Read", nll=2.0), item("b", "s", tools="Bash"), item("c", "s", tools="Read", nll=6.0)]
    found = by_group(items, "tools")
    assert list(found) == ["Bash", "Read"]
    assert found["Read"]["records"] == 2
    assert found["Read"]["expert_nll_per_token"] == pytest.approx(8 / 4)


def test_a_difference_is_paired_and_counts_what_differs() -> None:
    a = [item("a", "s", flags=TOOL | {"exact": True}), item("b", "t", flags=TOOL), item("c", "u")]
    b = [item("a", "s", flags=TOOL), item("b", "t", flags=TOOL), item("c", "u")]
    found = difference(BY_KEY["tool_exact_share"], a, b, 0.95, 200, 0)
    assert found is not None
    assert (found.interval.value, found.items, found.discordant) == (0.5, 2, 1)
    assert found.interval.sessions == 2
    assert difference(BY_KEY["tool_exact_share"], a[2:], b[2:], 0.95, 200, 0) is None
    with pytest.raises(ValueError, match="same items"):
        difference(BY_KEY["kl_per_token"], a, b[::-1], 0.95, 200, 0)


def test_something_against_itself_is_exactly_nothing() -> None:
    items = [item(str(i), f"s{i % 3}", nll=0.1 * i, flags=TOOL if i % 2 else {}) for i in range(9)]
    for measure in MEASURES:
        if measure.about == "records":
            found = difference(measure, items, items, 0.95, 200, 0)
            assert found is not None
            assert (found.interval.value, found.discordant, found.interval.degenerate) == (0.0, 0, True)
            low, high = found.interval.low, found.interval.high
            assert low is not None
            assert high is not None
            assert (low < 0 < high) if measure.yes_or_no else (low == high == 0)


def test_sessions_that_share_text_are_one_observation() -> None:
    a = [item(str(i), f"s{i}", group=f"g{i // 2}", nll=float(i)) for i in range(20)]
    b = [item(str(i), f"s{i}", group=f"g{i // 2}", nll=float(i % 5)) for i in range(20)]
    found = difference(BY_KEY["expert_nll_per_token"], a, b, 0.95, 200, 0)
    assert found is not None
    assert found.interval.sessions == 10
    assert found.to_json()["few_sessions"] is False


def test_rounding_is_no_difference() -> None:
    a, b = [item("a", "s", nll=4.0), item("b", "t", nll=4.0)], [item("a", "s", nll=4.0 + 1e-9), item("b", "t", nll=5.0)]
    found = difference(BY_KEY["expert_nll_per_token"], a, b, 0.95, 200, 0)
    assert found is not None
    assert found.discordant == 1
    assert found.to_json()["few_sessions"] is True


def test_percentile() -> None:
    assert p95([]) is None
    assert p95([float(i) for i in range(101)]) == 95.0
