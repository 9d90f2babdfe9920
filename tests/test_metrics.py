from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest

from sdft_cli.metrics import HELDOUT, METRICS, Metric, by_group, metrics_of, p95, part_of, register, summary


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
    assert set(found) == {key for key, m in METRICS.items() if m.about == "records"}
    assert METRICS["tool_exact_share"].of(items[:1]) is None
    unscored = item("c", "u", tools="Read", flags={}, chrf=None, calls_unasked=None)
    assert summary([*items, unscored], "records")["tool_named_share"] == 1.0
    assert METRICS["unasked_call_share"].of([item("d", "u", calls_unasked=None)]) is None
    assert METRICS["kl_per_token"].of([item("a", "s", kl=0.0, rollout_tokens=0)]) is None


def test_groups_have_their_own_means() -> None:
    items = [item("a", "s", tools="Read", nll=2.0), item("b", "s", tools="Bash"), item("c", "s", tools="Read", nll=6.0)]
    found = by_group(items, "tools")
    assert list(found) == ["Bash", "Read"]
    assert found["Read"]["records"] == 2
    assert found["Read"]["expert_nll_per_token"] == pytest.approx(8 / 4)


def test_percentile() -> None:
    assert p95([]) is None
    assert p95([float(i) for i in range(101)]) == 95.0


def test_the_drift_has_percentiles_of_tokens_and_of_prompts() -> None:
    prompts = [{"tokens": 2, "kl": i, "token_kl": [0.0, i], "same_top": 1, "entropy": 4.0} for i in range(101)]
    found = summary(prompts, "drift")
    assert (found["drift_kl"], found["drift_same_top"], found["entropy"]) == (25.0, 0.5, 2.0)
    assert found["kl_p95_of_prompts"] == 47.5
    assert found["kl_p95_of_tokens"] == p95([0.0] * 101 + [float(i) for i in range(101)])
    assert found["entropy_p95_of_prompts"] == 2.0


def test_values_and_differences_have_their_units() -> None:
    share, nll = METRICS["tool_valid_share"], METRICS["expert_nll_per_token"]
    assert (share.cell(0.125), share.cell(None), share.signed(-0.125)) == ("12.5%", "-", "-12.5 pp")
    assert (nll.cell(1.5), nll.signed(0.25)) == ("1.500", "+0.250")
    assert (share.in_brief(0.25), share.in_brief(None), nll.in_brief(1.5)) == (
        "valid calls 25%",
        "valid calls -",
        "expert NLL 1.5000",
    )


def test_the_report_goes_by_section_and_tasks_of_the_harness_come_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdft_cli.metrics.METRICS", dict(METRICS))
    first = METRICS["kl_per_token"]
    register(Metric("records", first.section, "new", "new", ".1f", "higher", lambda item: (1.0, 1.0)))
    higher = {"a/acc": True, "b/loss": False, "c/length": None}
    found = metrics_of({"harness": {"higher_is_better": higher}})
    assert [m.key for m in found if m.section == first.section][-1] == "new"
    sections = [section for section, _ in groupby(m.section for m in found)]
    assert len(sections) == len(set(sections))
    assert {m.key: m.better for m in found[-3:]} == {"a/acc": "higher", "b/loss": "lower", "c/length": "neither"}
    assert found[-1].of([{"values": {"c/length": 2.0}}, {"values": {}}]) == 2.0
    with pytest.raises(ValueError, match="two metrics are called new"):
        register(Metric("drift", "", "new", "", "", "neither"))


def test_a_part_that_was_left_out_is_empty() -> None:
    contender = {"summary": {"records": 1}, "drift": {"summary": {}}}
    assert part_of(contender, "records") is contender
    assert part_of(contender, "drift") == {"summary": {}}
    assert part_of(contender, "questions") == {}


def test_what_is_held_out_is_in_the_table() -> None:
    assert all(METRICS[key].about == "records" and METRICS[key].brief[0] for key in HELDOUT)
