"""A dataset as one static HTML page: inline SVG, no script, nothing loaded from anywhere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sdft_cli.records import Dataset
from sdft_cli.report.statistics import Length, cells_of, dataset_statistics
from sdft_cli.report.templates import render
from sdft_cli.report.told import sentences

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


def dataset_values(dataset: Dataset) -> dict[str, Any]:
    """Return what the templates show of a dataset; raises as `dataset_statistics`."""
    statistics = dataset_statistics(dataset)
    return {
        "manifest": dataset.manifest,
        "funnel": dataset.manifest["funnel"],
        "told": sentences(dataset.manifest),
        "statistics": statistics,
        "plots": [plot_of(length) for length in statistics.lengths],
        "plot_width": WIDTH,
        "plot_height": HEIGHT,
        "cells": cells_of,
    }


def render_page(dataset: Dataset) -> str:
    """Return the page of a dataset, every name in it escaped; raises as `dataset_statistics`."""
    return render("report/dataset.html.jinja", **dataset_values(dataset))
