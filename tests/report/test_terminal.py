from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from sdft_cli.records import Dataset, Session
from sdft_cli.report import terminal
from sdft_cli.report.bars import HistogramBars, bar_cells
from sdft_cli.report.statistics import Histogram, Length, dataset_statistics
from tests.datasets import example_dataset, row, store
from tests.report.hostile import NAMES, hostile_dataset


def shown(renderable: RenderableType, width: int, encoding: str = "utf-8") -> list[str]:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding, write_through=True), width=width, highlight=False)
    console.print(renderable)
    return raw.getvalue().decode(encoding).splitlines()


def dataset_report(dataset: Dataset, full: bool = False) -> RenderableType:
    return terminal.statistics_report(dataset.manifest["funnel"], dataset_statistics(dataset), full)


LENGTH = Length(
    "reference_tokens",
    "expert turn",
    "max_rollout_tokens",
    40,
    None,
    Histogram((4, 8, 16, 32, 64), (10, 0, 5, 1), (0, 0, 0, 20)),
)


def test_bars() -> None:
    title, *bars = shown(HistogramBars(LENGTH), 80)[1:]
    assert title == "expert turn, tokens  (\u2588 kept, \u2591 rejected by a cap)"
    kept, over = "\u2588", "\u2591"
    assert [line.rstrip() for line in bars] == [  # 60 cells for the largest bin, 1 + 20
        "   \u2264 8 " + kept * 29 + " 10",
        "  \u2264 16 0",
        "  \u2264 32 " + kept * 14 + " 5",
        "  \u2264 64 " + kept * 3 + over * 57 + " 1 + 20",
        "  \u2500\u2500\u2500\u2500 cap 40 (--max-rollout-tokens)",
    ]
    plain = shown(HistogramBars(LENGTH), 80, "ascii")
    assert plain[5] == "  <= 64 " + "#" * 3 + "." * 57 + " 1 + 20"


def test_a_count_is_never_shown_as_nothing() -> None:
    assert bar_cells(1, 0, 1_000_000, 40) == (1, 0)
    assert bar_cells(0, 1, 1_000_000, 40) == (0, 1)
    assert bar_cells(500_000, 500_000, 1_000_000, 40) == (20, 20)


@pytest.mark.parametrize("width", [80, 120])
def test_the_report_fits_the_terminal_and_names_survive(tmp_path: Path, width: int) -> None:
    lines = shown(dataset_report(hostile_dataset(tmp_path / "d"), full=True), width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for name in NAMES:
        for part in name.split("\n"):
            assert part in text
    assert "cap 100 (--max-prompt-tokens)" in text
    assert "100 (now)" in text
    assert "\x1b" not in text


def test_the_short_form_shows_caps_only_where_one_rejected_a_turn(tmp_path: Path) -> None:
    quiet = "\n".join(shown(dataset_report(example_dataset(tmp_path, 3)), 80))
    assert "Funnel" in quiet
    assert "teacher prompt" in quiet
    assert "if it were" not in quiet
    assert "Tools called" not in quiet
    loud = "\n".join(shown(dataset_report(hostile_dataset(tmp_path / "d")), 80))
    assert "if it were" in loud


def test_the_terminal_shows_the_most_called_tools_and_the_rest_in_one_row(tmp_path: Path) -> None:
    from sdft_cli.records import Message, ToolCall
    from sdft_cli.report.statistics import ToolUse

    calls = tuple(ToolCall(str(i), f"tool{i:02}", "{}") for i in range(20) for _ in range(20 - i))
    session = Session("s", (Message("user", "a"), Message("assistant", "", calls)))
    statistics = dataset_statistics(store(tmp_path / "d", [session], [row(session, 1)]))
    assert statistics.tools == tuple(ToolUse(f"tool{i:02}", 20 - i, 20 - i) for i in range(20))
    text = "\n".join(shown(terminal.tools_table(statistics), 80))
    assert "tool14" in text
    assert "tool15" not in text
    assert "5 other tool(s)" in text
    assert " 15 " in text.split("other tool(s)")[1]  # 5 + 4 + 3 + 2 + 1 calls


def gate_result(**lift: object) -> dict[str, object]:
    one = {"value": 0.25, "low": 0.1, "high": 0.4, "degenerate": False, "rule": "above 0", "passed": True, **lift}
    other = {**one, "value": -0.5, "low": -0.75, "high": -0.25, "passed": False}
    return {
        "split": "validation",
        "shuffled": False,
        "settings": {"confidence": 0.9},
        "conduct": {
            "tool.first_token": {**one, "rule": "not below 0.25"},
            "prose.begins_with_block": {**other, "value": 0.75, "rule": "not above 0.05"},
        },
        "lifts": {"likelihood": one, "likelihood_over_control": other, "agreement": {**one, "rule": "not below 0"}},
        "summary": {
            "records": 24,
            "sessions": 15,
            "tool_turns": 11,
            "nll_without": 1.5,
            "nll_with": 1.25,
            "nll_control": 0.75,
            "agreement_without": 0.5,
            "agreement_with": 0.625,
        },
    }


def test_the_gate_shows_what_was_measured_and_what_must_hold() -> None:
    lines = shown(terminal.gate_table(gate_result()), 110)
    assert max(map(len, lines)) <= 110
    rows = [[cell.strip() for cell in line.split("\u2502")[1:-1]] for line in lines if "\u2502" in line]
    assert rows == [
        ["expert NLL per token (nats)", "1.500", "1.250", "0.750"],
        ["answers that agree", "50.0%", "62.5%", "-"],
        ["likelihood, over no reference (nats/token)", "+0.250", "+0.100 to +0.400", "above 0", "yes"],
        ["likelihood, over another's reference (nats/token)", "-0.500", "-0.750 to -0.250", "above 0", "NO"],
        ["agreement, over no reference (share)", "+0.250", "+0.100 to +0.400", "not below 0", "yes"],
        ["tool: expert's first token (probability)", "+0.250", "+0.100 to +0.400", "not below 0.25", "yes"],
        ["prose: answers with its block (share)", "+0.750", "-0.750 to -0.250", "not above 0.05", "NO"],
    ]
    text = "\n".join(lines)
    assert "24 validation records of 15 sessions" in " ".join(text.split())
    assert "90% interval" in text
    assert "all equal" in "\n".join(shown(terminal.gate_table(gate_result(degenerate=True)), 110))


def test_the_gate_shows_no_agreement_where_no_call_can_be_scored() -> None:
    result: Any = gate_result()
    del result["lifts"]["agreement"]
    result["summary"] |= {"agreement_without": None, "agreement_with": None}
    lines = shown(terminal.gate_table(result), 110)
    rows = [[cell.strip() for cell in line.split("\u2502")[1:-1]] for line in lines if "\u2502" in line]
    assert rows[1] == ["answers that agree", "-", "-", "-"]
    assert len(rows) == 6
