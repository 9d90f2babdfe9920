"""A comparison of runs: one table on the terminal, and one page with a plot of new skill against forgetting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from rich.console import Group, RenderableType
from rich.text import Text

from sdft_cli.metrics import METRICS
from sdft_cli.report.evaluation import difference_table, values_rows
from sdft_cli.report.templates import render
from sdft_cli.report.terminal import table

WIDTH, HEIGHT = 560.0, 340.0
"""The plot area in SVG units; labels stand outside it."""

Point = Mapping[str, Any]


@dataclass(frozen=True)
class Axis:
    """A linear axis from `low` to `high` with marks at round numbers."""

    low: float
    high: float
    marks: tuple[float, ...]

    def place(self, value: float) -> float:
        """Return where a value falls, 0 to 1."""
        return (value - self.low) / (self.high - self.low)


def axis_of(values: Sequence[float]) -> Axis:
    """Return an axis that holds all values and 0."""
    low, high = min(0.0, *values), max(0.0, *values)
    if low == high:
        low, high = low - 1, high + 1
    raw = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw)
    first, last = math.floor(low / step), math.ceil(high / step)
    return Axis(first * step, last * step, tuple(i * step for i in range(first, last + 1)))


def _ends(side: Mapping[str, Any]) -> list[float]:
    return [side["value"], *(side[k] for k in ("low", "high") if side[k] is not None)]


def plot_of(points: Sequence[Point]) -> dict[str, Any]:
    """Lay the plot out in SVG units: forgetting to the right, skill upwards."""
    x, y = (axis_of([v for p in points for v in _ends(p[key])]) for key in ("forgetting", "skill"))

    def across(value: float) -> float:
        return x.place(value) * WIDTH

    def down(value: float) -> float:
        return HEIGHT - y.place(value) * HEIGHT

    def span(side: Mapping[str, Any], to: Any) -> tuple[float, float] | None:
        return None if side["low"] is None else (to(side["low"]), to(side["high"]))

    return {
        "width": WIDTH,
        "height": HEIGHT,
        "x_marks": [(across(v), f"{v:g}") for v in x.marks],
        "y_marks": [(down(v), f"{v:g}") for v in y.marks],
        "origin": (across(0.0), down(0.0)),
        "points": [
            {
                "name": p["name"],
                "x": across(p["forgetting"]["value"]),
                "y": down(p["skill"]["value"]),
                "x_span": span(p["forgetting"], across),
                "y_span": span(p["skill"], down),
                "left": across(p["forgetting"]["value"]) > WIDTH * 0.7,
            }
            for p in points
        ],
    }


def with_interval(side: Mapping[str, Any]) -> str:
    """Write a gain or a loss with its interval, if it has one."""
    if side["low"] is None:
        return f"{side['value']:+.4f}"
    return f"{side['value']:+.4f} [{side['low']:+.4f}, {side['high']:+.4f}]"


def _trade_off_rows(points: Sequence[Point]) -> list[tuple[str, str, str]]:
    return [(p["name"], with_interval(p["skill"]), with_interval(p["forgetting"])) for p in points]


def report(comparison: Mapping[str, Any], points: Sequence[Point], skill: str, forgetting: str) -> RenderableType:
    """Show all models' numbers, what each gained and lost against the base, and the others against the first."""
    names = list(comparison["contenders"])
    rows = [(label, *(cells[name] for name in names)) for label, cells in values_rows(comparison)]
    parts: list[RenderableType] = [
        table(
            f"{comparison['records']} held-out records of {comparison['facts']['sessions']} sessions",
            ["", *names],
            rows,
        ),
        table(
            f"Against {names[0]}, {comparison['config']['confidence']:.0%} intervals",
            ["", f"gain: {skill}", f"loss: {forgetting}"],
            _trade_off_rows(points),
        ),
    ]
    parts += [difference_table(comparison, f"{name} - {names[1]}") for name in names[2:]]
    return Group(*parts)


def matrix_report(matrix: Mapping[str, Any]) -> RenderableType:
    """Show a measure on every dataset after every run, what became of each dataset, and the backward transfer."""
    metric, names = METRICS[matrix["skill"]], matrix["datasets"]
    rows = [("base", *map(metric.cell, matrix["base"]))]
    rows += [(f"after {run['name']}", *map(metric.cell, run["values"])) for run in matrix["runs"]]
    changes = [
        (name, *("-" if change[key] is None else metric.signed(change[key]) for key in ("value", "low", "high")))
        for name, change in matrix["changes"].items()
    ]
    last, level = matrix["runs"][-1]["name"], f"{matrix['confidence']:.0%}"
    transfer = metric.signed(matrix["backward_transfer"])
    parts: list[RenderableType] = [
        table(f"{metric.label}, on held-out records of", ["", *names], rows, caption=f"{metric.better} is better"),
        table(f"After {last}, minus right after training on it", ["dataset", "change", f"{level} from", "to"], changes),
        Text(f"Backward transfer {transfer}: the mean change, better is positive, forgetting is negative"),
    ]
    return Group(*parts, *(Text(f"Note: {note}.") for note in matrix["notes"]))


def trade_off_svg(points: Sequence[Point], skill: str, forgetting: str) -> str:
    """Return the plot of new skill against forgetting as an SVG image; every name in it is escaped."""
    return render("report/trade_off.svg.jinja", plot=plot_of(points), skill=skill, forgetting=forgetting)


def render_page(comparison: Mapping[str, Any], points: Sequence[Point], skill: str, forgetting: str) -> str:
    """Return the page; every name in it is escaped."""
    return render(
        "report/comparison.html.jinja",
        comparison=comparison,
        names=list(comparison["contenders"]),
        rows=values_rows(comparison),
        trade_off=_trade_off_rows(points),
        svg=Markup(trade_off_svg(points, skill, forgetting)),  # its own template escaped what is in it
        skill=skill,
        forgetting=forgetting,
        confidence=f"{comparison['config']['confidence']:.0%}",
    )
