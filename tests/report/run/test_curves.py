from __future__ import annotations

from pathlib import Path

import pytest

from sdft_cli.report.run.curves import HEIGHT, MOST_POINTS, WIDTH, Chart, Series, charts_of, plot_of, thinned
from sdft_cli.stages.report import run_parts
from tests.report.run.made import made_run


def coordinates(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in path.split())]


def test_a_line_is_to_scale() -> None:
    plot = plot_of(Chart("x", (Series("a", ((1, 0.0), (3, 2.0), (5, 1.0))),)))
    assert coordinates(plot.lines[0].path) == [(0.0, HEIGHT), (WIDTH / 2, 0.0), (WIDTH, HEIGHT / 2)]
    assert plot.y_marks[0] == (HEIGHT, "0")
    assert [label for _, label in plot.x_marks] == ["1", "2", "3", "4", "5"]
    assert plot.told == "a: 0 at step 1, 1 at step 5, lowest 0, highest 2"


def test_nothing_but_zeros_and_a_single_point_have_axes() -> None:
    plot = plot_of(Chart("x", (Series("a", ((0, 0.0), (10, 0.0))),)))
    assert [label for _, label in plot.y_marks][-1] == "1"
    single = plot_of(Chart("x", (Series("a", ((7, 2.0),)),)))
    assert [label for _, label in single.x_marks] == ["7"]
    assert single.lines[0].dots == ((0.0, 0.0),)


def test_areas_lie_on_each_other() -> None:
    lines = (Series("a", ((1, 1.0), (2, 2.0))), Series("b", ((1, 3.0), (2, 2.0))))
    plot = plot_of(Chart("x", lines, stacked=True))
    lower, upper = (coordinates(line.path) for line in plot.lines)
    assert lower == [(0.0, HEIGHT * 3 / 4), (WIDTH, HEIGHT / 2), (WIDTH, HEIGHT), (0.0, HEIGHT)]
    assert upper == [(0.0, 0.0), (WIDTH, 0.0), *reversed(lower[:2])]


def test_many_points_become_means() -> None:
    line = thinned(Series("a", tuple((step, float(step % 2)) for step in range(1, 1001))))
    assert len(line.points) == MOST_POINTS
    assert line.points[0] == (5, pytest.approx(3 / 5))
    assert line.points[-1][0] == 1000
    few = Series("a", ((1, 1.0),))
    assert thinned(few) is few


def test_a_run_has_all_its_curves(tmp_path: Path) -> None:
    charts = {chart.title: chart for chart in charts_of(run_parts(made_run(tmp_path / "r")))}
    assert list(charts) == [
        "Loss",
        "Training, nats per token",
        "Held out, nats per token",
        "Rollout length, tokens",
        "Finished within the cap, share",
        "Tool calls, share",
        "Learning rate",
        "Gradient norm, before clipping",
        "Tokens per second",
        "Seconds of a step, by phase",
    ]
    assert charts["Loss"].series[0].points[:2] == ((1, 2.0), (2, 1.0))
    assert len(charts["Tool calls, share"].series[0].points) == 10  # steps without a tool turn have no point
    assert [line.name for line in charts["Seconds of a step, by phase"].series] == ["rollout", "student", "teacher"]
    assert [line.name for line in charts["Training, nats per token"].series] == ["KL(teacher || student)"]
