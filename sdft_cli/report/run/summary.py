"""A run on the terminal: what it is, how it went, what was measured, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType

from sdft_cli.metrics import HELDOUT, METRICS
from sdft_cli.report import evaluation as evaluation_report
from sdft_cli.report.merge_rows import merge_rows
from sdft_cli.report.run.curves import measure_label
from sdft_cli.report.run.parts import Line, RunParts, mapping, number
from sdft_cli.report.terminal import merge_table, plain, table

MOST_ROWS = 12
ENVIRONMENT = ("backend", "sampling_weights", "prefix_sharing", "products")


def gate_verdict(parts: RunParts) -> str:
    """Say what the gate found before step 1."""
    if parts.gate is None:
        return "not measured"
    return str(parts.gate.get("verdict") or ("passed" if parts.gate.get("passed") is True else "failed"))


def facts(parts: RunParts) -> list[tuple[str, str]]:
    """Return what a run is, and how far it came, as label and value."""
    info, config = parts.info, parts.config
    steps, planned = parts.steps, mapping(config.get("optim")).get("max_steps", "?")
    dataset = mapping(info.get("dataset"))
    funnel = mapping(dataset.get("funnel"))
    return [
        ("status", f"{info.get('status', '?')}, {steps:,} of {planned} steps"),
        ("model", str(info.get("model", "?"))),
        ("objective", objective(parts)),
        ("dataset", f"{dataset.get('name', '?')}, {funnel.get('train', '?')} training records"),
        ("gate", gate_verdict(parts)),
        *([("best step", str(info["best_step"]))] if info.get("best_step") is not None else []),
    ]


def objective(parts: RunParts) -> str:
    """Name the objective and the divergence."""
    kind = str(parts.info.get("objective", parts.config.get("objective", "?")))
    divergence = mapping(parts.config.get("distill")).get("divergence")
    return f"{kind}, {divergence}" if kind == "sdft" and divergence else kind


def environment(parts: RunParts) -> list[tuple[str, str]]:
    """Return what the run was made with, as label and value."""
    info = parts.info
    versions = mapping(info.get("environment"))
    base = mapping(info.get("base"))
    rows = [(key.replace("_", " "), str(info[key])) for key in ENVIRONMENT if key in info]
    rows += [("backend, why", str(info["backend_reason"]))] if info.get("backend_reason") else []
    rows += [(f"base, {key.replace('_', ' ')}", str(value)) for key, value in base.items() if value is not None]
    rows += [(str(name), str(version)) for name, version in versions.items()]
    return rows


def step_rows(parts: RunParts) -> list[tuple[str, str, str, str]]:
    """Return what the first step and the last say: (label, first, last, best or mean)."""
    if not parts.metrics:
        return []
    first, last = parts.metrics[0], parts.metrics[-1]
    keys = [key for key in last if key.endswith("_per_token")]
    wanted = ["loss", *keys, "rollout_length", "finished_share", "tool_valid_share", "learning_rate", "seconds"]
    rows = []
    for key in wanted:
        values = [value for line in parts.metrics if (value := number(line, key)) is not None]
        if values:
            mean = sum(values) / len(values)
            rows.append((_label(key, parts), *(_cell(key, x) for x in (number(first, key), number(last, key), mean))))
    return rows  # type: ignore[return-value]


def _label(key: str, parts: RunParts) -> str:
    names = {
        "loss": "loss",
        "tool_valid_share": "tool turns: valid calls",
        "learning_rate": "learning rate",
        "seconds": "seconds",
    }
    if key.endswith("_per_token"):
        return f"{measure_label(key, parts)}, nats per token"
    return names.get(key) or METRICS[key].label


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    if key == "learning_rate":
        return f"{value:.2e}"
    return METRICS[key].cell(value) if key in METRICS else f"{value:.4f}" if key != "seconds" else f"{value:.1f}"


def heldout_rows(parts: RunParts, most: int | None = None) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows of the held-out evaluations; of many, the first and the last `most`."""
    lines = list(parts.heldout)
    if most is not None and len(lines) > most:
        lines = [*lines[: most // 2], *lines[-(most - most // 2) :]]
    keys = [key for key in HELDOUT if any(number(line, key) is not None for line in lines)]
    columns = ["step", *(METRICS[key].brief[0] or METRICS[key].label for key in keys)]
    return columns, [[str(line.get("step", "?")), *(_brief(key, line) for key in keys)] for line in lines]


def _brief(key: str, line: Line) -> str:
    value = number(line, key)
    return "-" if value is None else format(value, METRICS[key].brief[1] or METRICS[key].form)


def certificate_rows(check: Mapping[str, Any]) -> list[tuple[str, str]] | None:
    """Return the rows of a merge certificate; None if it is not of this version."""
    try:
        return merge_rows(check)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def run_report(parts: RunParts) -> RenderableType:
    """Show a run: facts, steps, held-out evaluations, the merge, evaluations, and what is missing."""
    found: list[RenderableType] = [_untitled(f"Run {parts.name}", facts(parts))]
    if rows := step_rows(parts):
        found.append(table("Steps", ["", "first", "last", "mean"], rows))
    columns, held_out = heldout_rows(parts, MOST_ROWS)
    if held_out:
        more = len(parts.heldout) - len(held_out)
        found.append(table("Held out while training", columns, held_out, f"{more} more on the page" if more else None))
    found += [_evaluated(one.name, one.document) for one in parts.evaluations]
    if parts.certificate is not None:
        whole = certificate_rows(parts.certificate) is not None
        found.append(merge_table(parts.certificate) if whole else plain(certificate_told(parts.certificate)))
    found += [plain(f"Missing: {note}") for note in parts.notes]
    return Group(*found)


def certificate_told(check: Mapping[str, Any]) -> str:
    """Say whether a certificate passed, and what failed."""
    if check.get("passed") is True:
        return "The merge certificate passed; it is of another version of sdft, which shows no rows of it."
    failures = check.get("failures")
    told = "; ".join(map(str, failures)) if isinstance(failures, list) and failures else "it does not say why"
    return f"The merge certificate did not pass: {told}"


def _untitled(title: str, rows: list[tuple[str, str]]) -> RenderableType:
    built = table(title, ["", ""], rows, texts=2)
    built.show_header = False
    built.columns[0].no_wrap = True
    return built


def _evaluated(name: str, document: Mapping[str, Any]) -> RenderableType:
    return Group(plain(f"\nEvaluation {name}"), evaluation_report.report(document))
