"""A dataset as one static HTML page: inline SVG, no script, nothing loaded from anywhere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from sdft_cli.records import Dataset
from sdft_cli.records.folders import new_file
from sdft_cli.records.reasons import meaning_of
from sdft_cli.report.statistics import Length, dataset_statistics
from sdft_cli.resources import resource_text

WIDTH, HEIGHT = 640.0, 150.0
"""The plot area of a histogram, in SVG units; labels stand outside it."""


@dataclass(frozen=True)
class Bar:
    """A bin of a histogram in SVG units: `y` is the upper end, and `over_cap` stands on top of `kept`."""

    x: float
    width: float
    kept_y: float
    kept_height: float
    over_cap_y: float
    over_cap_height: float
    label: str
    """The upper border of the bin."""
    title: str


@dataclass(frozen=True)
class Plot:
    """A histogram in SVG units; `cap_x` is where the cap falls between the borders of its bin, on a log scale."""

    length: Length
    bars: tuple[Bar, ...]
    largest: int
    cap_x: float | None


def plot_of(length: Length) -> Plot:
    """Lay a histogram out."""
    histogram = length.histogram
    bins = list(zip(histogram.edges, histogram.edges[1:], histogram.kept, histogram.over_cap, strict=False))
    largest = max((kept + over for _, _, kept, over in bins), default=0)
    step = WIDTH / max(1, len(bins))
    scale = HEIGHT / max(1, largest)
    bars = tuple(
        Bar(
            x=index * step + 1,
            width=step - 2,
            kept_y=HEIGHT - kept * scale,
            kept_height=kept * scale,
            over_cap_y=HEIGHT - (kept + over) * scale,
            over_cap_height=over * scale,
            label=f"{high:,}",
            title=f"{low:,} < tokens \u2264 {high:,}: {kept:,} kept, {over:,} rejected by a cap",
        )
        for index, (low, high, kept, over) in enumerate(bins)
    )
    cap_x = None
    for index, (low, high, _, _) in enumerate(bins):
        if length.cap and low < length.cap <= high:
            inside = math.log(length.cap / low) / math.log(high / low) if low else 1.0
            cap_x = (index + inside) * step
    return Plot(length, bars, largest, cap_x)


def render_page(dataset: Dataset) -> str:
    """Return the page of a dataset; every name in it is escaped.

    Raises:
        DataError: as `dataset_statistics`.
    """
    statistics = dataset_statistics(dataset)
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["meaning"] = meaning_of
    environment.filters["number"] = lambda value: f"{value:,}"
    environment.filters["coordinate"] = lambda value: f"{value:.1f}"
    template = environment.from_string(resource_text("templates", "report", "dataset.html.jinja"))
    values: dict[str, Any] = {
        "manifest": dataset.manifest,
        "funnel": dataset.manifest["funnel"],
        "statistics": statistics,
        "plots": [plot_of(length) for length in statistics.lengths],
        "plot_width": WIDTH,
        "plot_height": HEIGHT,
    }
    return template.render(values)


def write_page(dataset: Dataset, target: Path, overwrite: bool = False) -> Path:
    """Write the page of a dataset; raises as `render_page` and `new_file`."""
    text = render_page(dataset)
    with new_file(target, overwrite) as scratch:
        scratch.write_text(text, encoding="utf-8")
    return target
