from __future__ import annotations

import copy
import io
import xml.etree.ElementTree as ElementTree

import pytest
from rich.console import Console

from sdft_cli.evaluation.compare import compare, trade_off
from sdft_cli.report import comparison, evaluation
from tests.evaluation.documents import document


def shown(renderable: object) -> str:
    console = Console(file=io.StringIO(), width=140, highlight=False)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


RESULT = document(tuned=("tuned", 0.5), sft=("control", 0.7))


def test_every_model_and_the_pairs_that_matter_are_shown() -> None:
    text = shown(evaluation.report(RESULT, details=True))
    assert "24 held-out records of 8 sessions, 12 tool turns" in text
    assert [k for k in RESULT["differences"] if f"{k}, paired" in text] == ["tuned - base", "sft - base", "sft - tuned"]
    values = dict(evaluation.values_rows(RESULT))
    assert (
        values["expert NLL, nats per token"]["base"]
        == f"{RESULT['contenders']['base']['summary']['expert_nll_per_token']:.3f}"
    )
    assert values["questions right"] == {"base": "50.0%", "tuned": "50.0%", "sft": "50.0%"}
    assert "2 of 12 expert's calls cannot be told apart" in text
    assert "Some of the 8 sessions share text: 7 groups" in text
    assert "7 independent sessions are few" in text
    assert "3 of the expert's turns, 1 of them with calls, are longer than the cap of 512 tokens" in text
    assert "names a new path in 25.0%" in text
    assert "By tool turns" in text
    assert "turns 2 to 4" in text


def test_a_difference_has_its_interval_its_mark_and_what_n_can_show() -> None:
    text = shown(evaluation.difference_table(RESULT, "tuned - base"))
    gap = RESULT["differences"]["tuned - base"]["expert_nll_per_token"]
    row = next(line for line in text.splitlines() if "expert NLL" in line)
    for part in (f"{gap['value']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}] *", "24/24"):
        assert part in row
    shares = next(line for line in text.splitlines() if "right tool" in line)
    assert "] pp " in shares
    assert "%" not in shares
    assert "No item differs: rollout length, tokens, finished within the cap (n shows " in " ".join(text.split())
    few = document(tuned=("tuned", 0.5))
    few["differences"]["tuned - base"]["tool_named_share"].update(sessions=4, few_sessions=True)
    told = " ".join(shown(evaluation.difference_table(few, "tuned - base")).split())
    assert "Of few sessions: tool turns: right tool (4)." in told


def test_a_name_with_a_minus_in_it_is_a_name() -> None:
    result = document(**{"lr - 1e-4": ("control", 0.3)})
    assert evaluation.shown_pairs(result) == ["lr - 1e-4 - base"]


def test_summaries_hold_no_items() -> None:
    found = evaluation.summaries(RESULT)
    assert set(found) == {"contenders", "differences", "facts"}
    assert set(found["contenders"]["tuned"]) == {"kind", "summary", "drift", "questions"}


def test_the_page_of_a_comparison_is_inert_and_its_plot_is_to_scale() -> None:
    hostile = "<script>alert(1)</script>[/b]"
    found = compare([(hostile, document(tuned=("tuned", 0.2))), ("b", document(tuned=("tuned", 0.6)))])
    points = trade_off(found, "expert_nll_per_token", "drift_kl")
    page = comparison.render_page(found, points, "expert_nll_per_token", "drift_kl")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "default-src 'none'" in page
    assert hostile in shown(comparison.report(found, points, "expert_nll_per_token", "drift_kl"))
    image = ElementTree.fromstring(comparison.trade_off_svg(points, "expert_nll_per_token", "drift_kl"))
    assert hostile in [text.text for text in image.iter("{http://www.w3.org/2000/svg}text")]
    plot = comparison.plot_of(points)
    x, y = (comparison.axis_of([v for p in points for v in p[k].values()]) for k in ("forgetting", "skill"))
    for point, drawn in zip(points, plot["points"], strict=True):
        assert drawn["x"] == pytest.approx((point["forgetting"]["value"] - x.low) / (x.high - x.low) * comparison.WIDTH)
        down = 1 - (point["skill"]["value"] - y.low) / (y.high - y.low)
        assert drawn["y"] == pytest.approx(down * comparison.HEIGHT)
        assert 0 <= drawn["x_span"][0] <= drawn["x"] <= drawn["x_span"][1] <= comparison.WIDTH
        assert 0 <= drawn["y_span"][1] <= drawn["y"] <= drawn["y_span"][0] <= comparison.HEIGHT


@pytest.mark.parametrize("values", [[0.0], [0.3], [-2.0, 5.0], [1e-6, 3e-6], [1234.0], [-0.1, -0.4]])
def test_axes_hold_their_values_and_zero_at_round_marks(values: list[float]) -> None:
    axis = comparison.axis_of(values)
    assert axis.low <= min(0.0, *values)
    assert axis.high >= max(0.0, *values)
    assert any(abs(mark) < 1e-12 for mark in axis.marks)
    assert 3 <= len(axis.marks) <= 9


def test_a_comparison_without_intervals_is_drawn_without_bars() -> None:
    found = compare([("a", document(tuned=("tuned", 0.2))), ("b", document(tuned=("tuned", 0.6)))])
    points = copy.deepcopy(trade_off(found, "expert_nll_per_token", "drift_kl"))
    for point in points:
        point["skill"].update(low=None, high=None)
    plot = comparison.plot_of(points)
    assert all(p["y_span"] is None and p["x_span"] for p in plot["points"])
    assert "[" not in comparison.report(found, points, "a", "b").renderables[1].columns[1]._cells[0]  # type: ignore[attr-defined]
