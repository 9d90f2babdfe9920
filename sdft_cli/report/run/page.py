"""A run, or an evaluation, as one static HTML page: inline SVG, no script, nothing loaded from anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from sdft_cli import __version__
from sdft_cli.records import Dataset
from sdft_cli.report.comparison import trade_off_svg, with_interval
from sdft_cli.report.evaluation import DIFFERENCE_COLUMNS, difference_rows, notes, shown_pairs, values_rows
from sdft_cli.report.page import dataset_values
from sdft_cli.report.run import autopsy, summary
from sdft_cli.report.run.answers import MOST_TEXT, answered, sides
from sdft_cli.report.run.curves import HEIGHT, WIDTH, Plot, charts_of, plot_of
from sdft_cli.report.run.parts import Evaluation, RunParts, mapping, number
from sdft_cli.report.templates import render

SKILL, FORGETTING = "expert_nll_per_token", "drift_kl"
"""The axes of the plot of an evaluation."""


def render_run(parts: RunParts) -> str:
    """Return the page of a run; every text in it is escaped, shortened and visible."""
    columns, held_out = summary.heldout_rows(parts)
    answers, more_answers = answered(parts.answers)
    return render(
        "report/run.html.jinja",
        name=parts.name,
        version=__version__,
        facts=summary.facts(parts),
        notes=parts.notes,
        steps=summary.step_rows(parts),
        plots=_plots(parts),
        plot_size=(WIDTH, HEIGHT),
        phases=_phases(parts),
        gate=_gate(parts.gate),
        heldout_columns=columns,
        heldout=held_out,
        samples=autopsy.samples_of(parts.samples),
        all_samples=len(parts.samples),
        levels=_levels(),
        sums=autopsy.sums_of(parts.samples),
        answers=answers,
        more_answers=more_answers,
        most_text=MOST_TEXT,
        evaluations=[_evaluated(one) for one in parts.evaluations],
        certificate=parts.certificate and _certificate(parts.certificate),
        environment=summary.environment(parts),
        config=_flat(parts.config),
        data=_data(parts.dataset),
    )


def render_evaluation(evaluation: Evaluation) -> str:
    """Return the page of an evaluation; texts as in `render_run`."""
    return render(
        "report/evaluation.html.jinja",
        name=evaluation.name,
        version=__version__,
        one=_evaluated(evaluation),
        most_text=MOST_TEXT,
    )


def _plots(parts: RunParts) -> list[Plot]:
    return [plot_of(chart) for chart in charts_of(parts)]


def _levels() -> list[tuple[int, str]]:
    """Return each level that is coloured, and the losses that it stands for."""
    ends = [*(f"{high:g}" for high in autopsy.LEVELS[1:]), ""]
    lows = [f"{low:g}" for low in autopsy.LEVELS]
    return [
        (i + 1, f"{low} to {high}" if high else f"{low} and more")
        for i, (low, high) in enumerate(zip(lows, ends, strict=True))
    ]


def _phases(parts: RunParts) -> list[tuple[str, float, float]]:
    """Return (phase, seconds of the run, share), the longest first."""
    sums: dict[str, float] = {}
    for line in parts.metrics:
        phases = mapping(line.get("phase_seconds"))
        for name in phases:
            sums[name] = sums.get(name, 0.0) + (number(phases, name) or 0.0)
    whole = sum(sums.values()) or 1.0
    return [(name, seconds, seconds / whole) for name, seconds in sorted(sums.items(), key=lambda x: -x[1])]


def _gate(gate: Mapping[str, Any] | None) -> list[tuple[str, str, str, str]]:
    """Return the gate's criteria: (what, mean, interval, whether it holds)."""
    rows = []
    for part in ("lifts", "conduct"):
        for name, found in mapping((gate or {}).get(part)).items():
            value, low, high = (number(mapping(found), key) for key in ("value", "low", "high"))
            interval = "-" if low is None or high is None else f"{low:+.3f} to {high:+.3f}"
            held = "yes" if mapping(found).get("passed") is True else "no"
            rule = f"{mapping(found).get('rule', '')}: {held}"
            rows.append((name.replace("_", " "), "-" if value is None else f"{value:+.3f}", interval, rule))
    return rows


def _evaluated(one: Evaluation) -> dict[str, Any]:
    """Return the values of an evaluation for a template."""
    document = one.document
    names = list(document["contenders"])
    answers, more = sides(one)
    svg = Markup(trade_off_svg(one.points, SKILL, FORGETTING)) if one.points else None  # its own template escaped it
    return {
        "name": one.name,
        "records": document["records"],
        "sessions": document["facts"]["sessions"],
        "tool_turns": document["facts"]["tool_turns"],
        "names": names,
        "rows": values_rows(document),
        "confidence": f"{document['config']['confidence']:.0%}",
        "columns": DIFFERENCE_COLUMNS,
        "differences": [(key, *difference_rows(document, key)) for key in shown_pairs(document)],
        "notes": notes(document),
        "svg": svg,
        "trade_off": [(p["name"], with_interval(p["skill"]), with_interval(p["forgetting"])) for p in one.points],
        "axes": (SKILL, FORGETTING),
        "answers": answers,
        "more": more,
    }


def _certificate(check: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "told": "" if check.get("passed") is True else summary.certificate_told(check),
        "rows": summary.certificate_rows(check) or [],
        "facts": [(key, str(check[key])) for key in ("base", "dtype", "sdft_version") if key in check],
    }


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return every setting as `section.key` and value."""
    found = []
    for key, value in config.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", str(value)))
    return found


def _data(dataset: Dataset | None) -> dict[str, Any] | None:
    return None if dataset is None else dataset_values(dataset)


def unreadable(document: Mapping[str, Any]) -> Sequence[str]:
    """Return what an evaluation lacks of what its page and tables show; empty if it can be shown."""
    needed = ("contenders", "differences", "records", "facts", "config")
    missing = [key for key in needed if key not in document]
    return missing or ["contenders" for _ in range(not document["contenders"])]
