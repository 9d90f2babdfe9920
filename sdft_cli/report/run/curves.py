"""Numbers by step as inline SVG: lines that differ by colour and by dashes, and phases stacked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from sdft_cli.choices import DIVERGENCES
from sdft_cli.report.comparison import Axis, axis_of
from sdft_cli.report.run.parts import Line, RunParts, mapping, number

WIDTH, HEIGHT = 270.0, 130.0
"""The plot area in SVG units; labels stand outside it. So narrow that letters are as large on a phone as elsewhere."""
MOST_POINTS, MOST_LINES = 200, 6
MEASURES = {"nll_per_token": "-log p"}

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A line: its name, and (step, value) in the order of the steps."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Chart:
    """Some lines over the same steps. `form`: how a value is written."""

    title: str
    series: tuple[Series, ...]
    form: str = ".3g"
    stacked: bool = False


@dataclass(frozen=True)
class Drawn:
    """A line in SVG units: what goes into `points` of a polyline or polygon, its dots where lines are short."""

    name: str
    path: str
    dots: tuple[Point, ...]
    last: str


@dataclass(frozen=True)
class Plot:
    """A chart in SVG units, and a sentence for those who cannot see it."""

    chart: Chart
    lines: tuple[Drawn, ...]
    x_marks: tuple[tuple[float, str], ...]
    y_marks: tuple[tuple[float, str], ...]
    told: str
    thinned: bool


def series(name: str, lines: Sequence[Line], key: str, within: Callable[[Line], Mapping[str, Any]] = dict) -> Series:
    """Return a key of some lines by step; lines without a finite number there are left out."""
    found = [(number(line, "step"), number(within(line), key)) for line in lines]
    return Series(name, tuple((x, y) for x, y in found if x is not None and y is not None))


def thinned(line: Series, most: int = MOST_POINTS) -> Series:
    """Return a line with at most `most` points: means of neighbours, each at the last of them."""
    size = -(-len(line.points) // most)
    if size <= 1:
        return line
    parts = [line.points[i : i + size] for i in range(0, len(line.points), size)]
    return Series(line.name, tuple((part[-1][0], sum(y for _, y in part) / len(part)) for part in parts))


def _told(chart: Chart) -> str:
    """Say where each line begins and ends, and between what values it stays."""
    found = []
    for line in chart.series:
        values = [y for _, y in line.points]
        ends = f"{values[0]:{chart.form}} at step {line.points[0][0]:.0f}"
        if len(values) > 1:
            ends += f", {values[-1]:{chart.form}} at step {line.points[-1][0]:.0f}"
        found.append(f"{line.name}: {ends}, lowest {min(values):{chart.form}}, highest {max(values):{chart.form}}")
    return ". ".join(found)


def _stacked(lines: Sequence[Series]) -> tuple[Series, ...]:
    """Put lines on top of each other; a line counts as 0 at a step where it has no point."""
    steps = sorted({x for line in lines for x, _ in line.points})
    by_step = [dict(line.points) for line in lines]
    sums = [list(accumulate(points.get(x, 0.0) for points in by_step)) for x in steps]
    return tuple(
        Series(line.name, tuple((x, tops[i]) for x, tops in zip(steps, sums, strict=True)))
        for i, line in enumerate(lines)
    )


def plot_of(chart: Chart) -> Plot:
    """Lay a chart out; every line has a point."""
    few = tuple(thinned(line) for line in chart.series)
    drawn = _stacked(few) if chart.stacked else few
    steps = [x for line in drawn for x, _ in line.points]
    values = [y for line in drawn for _, y in line.points]
    y_axis = axis_of(values if any(values) else [0.0, 1.0])
    low, high = min(steps), max(steps)
    marks = tuple(mark for mark in axis_of([high]).marks if low <= mark <= high and mark == int(mark))
    x_axis = Axis(low, max(high, low + 1), marks or (low,))

    def place(point: Point) -> Point:
        return x_axis.place(point[0]) * WIDTH, HEIGHT - y_axis.place(point[1]) * HEIGHT

    lines, floor = [], [(x, HEIGHT) for x, _ in map(place, drawn[0].points)]
    for original, line in zip(chart.series, drawn, strict=True):
        points = [place(point) for point in line.points]
        outline = [*points, *reversed(floor)] if chart.stacked else points
        floor = points
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in outline)
        dots = tuple(points) if len(points) <= 12 and not chart.stacked else ()
        lines.append(Drawn(line.name, path, dots, f"{original.points[-1][1]:{chart.form}}"))
    return Plot(
        chart=chart,
        lines=tuple(lines),
        x_marks=tuple((x_axis.place(x) * WIDTH, f"{x:g}") for x in x_axis.marks),
        y_marks=tuple((HEIGHT - y_axis.place(y) * HEIGHT, f"{y:g}") for y in y_axis.marks),
        told=_told(chart),
        thinned=any(len(line.points) > MOST_POINTS for line in chart.series),
    )


def _divergences(parts: RunParts) -> list[str]:
    """Return the measures per token that steps have: after a start with cross-entropy there are two."""
    keys = dict.fromkeys(key for line in parts.metrics for key in line if key.endswith("_per_token"))
    return list(keys)[:MOST_LINES]


def measure_label(key: str, parts: RunParts) -> str:
    """Name what steps measure per token; the direction of a KL divergence is that of the run."""
    divergence = DIVERGENCES.get(str(mapping(parts.config.get("distill")).get("divergence")))
    if divergence and divergence.metric == key:
        return divergence.symbol
    return MEASURES.get(key, key.removesuffix("_per_token").upper())


def _phases(parts: RunParts) -> Chart:
    names = list(dict.fromkeys(name for line in parts.metrics for name in mapping(line.get("phase_seconds"))))
    found = [series(name, parts.metrics, name, lambda line: mapping(line.get("phase_seconds"))) for name in names]
    found = [line for line in found if line.points]
    found.sort(key=lambda line: -sum(y for _, y in line.points))
    shown, rest = found[: MOST_LINES - 1], found[MOST_LINES - 1 :]
    if rest:
        sums: dict[float, float] = {}
        for line in rest:
            for x, y in line.points:
                sums[x] = sums.get(x, 0.0) + y
        shown.append(Series(f"{len(rest)} more", tuple(sorted(sums.items()))))
    return Chart("Seconds of a step, by phase", tuple(shown), ".3g", stacked=True)


def charts_of(parts: RunParts) -> list[Chart]:
    """Return the curves of a run; those of which it has no number are left out."""
    of_steps, held_out = parts.metrics, parts.heldout

    def both(key: str) -> tuple[Series, ...]:
        return series("training", of_steps, key), series("held out", held_out, key)

    found = [
        Chart("Loss", (series("loss", of_steps, "loss"),)),
        Chart(
            "Training, nats per token",
            tuple(series(measure_label(key, parts), of_steps, key) for key in _divergences(parts)),
        ),
        Chart(
            "Held out, nats per token",
            (
                series("KL(student||teacher)", held_out, "kl_per_token"),
                series("expert NLL", held_out, "expert_nll_per_token"),
            ),
        ),
        Chart("Rollout length, tokens", both("rollout_length")),
        Chart("Finished within the cap, share", both("finished_share")),
        Chart(
            "Tool calls, share",
            (
                *both("tool_valid_share"),
                series("held out, right tool", held_out, "tool_named_share"),
                series("held out, not asked for", held_out, "unasked_call_share"),
            ),
        ),
        Chart("Learning rate", (series("rate", of_steps, "learning_rate"),)),
        Chart("Gradient norm, before clipping", (series("norm", of_steps, "grad_norm"),)),
        Chart("Tokens per second", (series("tokens", of_steps, "tokens_per_second"),)),
        _phases(parts),
    ]
    with_points = [replace(chart, series=tuple(line for line in chart.series if line.points)) for chart in found]
    # An area needs two steps.
    return [c for c in with_points if c.series and not (c.stacked and max(len(x.points) for x in c.series) < 2)]
