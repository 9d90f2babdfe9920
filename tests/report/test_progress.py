"""How far long work is, on a terminal and without one."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from sdft_cli.notices import progress, set_loudness, tracked, watching
from sdft_cli.report import progress as shown
from sdft_cli.report.progress import Lines, duration, progress_reporter, time_left, working


def test_durations_and_what_is_left() -> None:
    assert [duration(s) for s in (0.4, 89, 90, 3540, 7500)] == ["0 s", "89 s", "2 min", "59 min", "2 h 05 min"]
    assert time_left(30, 1, 4) == "about 2 min left"
    assert time_left(30, 0, 4) == time_left(30, 4, 4) == ""


def test_without_a_terminal_long_work_is_told_in_lines(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    lines = Lines(lambda: now)
    lines.still()  # nothing is going on
    lines.report("tuned: answers", 0, 36)
    now = 30.0
    lines.report("tuned: answers", 12.5, 36)
    lines.still()
    lines.report("one thing", 0, 1)
    now = 60.0
    lines.still()
    lines.report("one thing", 1, 1)
    lines.still()
    lines.report("short", 0, 2)
    now = 64.0
    lines.report("short", 2, 2)
    now = 100.0
    lines.report("tuned: answers", 36, 36)
    lines.still()
    assert capsys.readouterr().err.splitlines() == [
        "tuned: answers: 12/36 after 30 s, about 56 s left",
        "one thing: after 30 s",
        "one thing: done in 30 s",
        "tuned: answers: 12/36 after 60 s, about 2 min left",
        "tuned: answers: 36/36 done in 2 min",
    ]


def test_work_that_goes_on_is_told_again_and_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shown, "EVERY", 0.01)
    with working("Merging"):
        progress("Comparing", 1, 2)
        while "Comparing: 1/2" not in (text := capsys.readouterr().err):
            assert "\x1b" not in text
        progress("Comparing", 2, 2)


def test_on_a_terminal_there_is_a_bar_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, highlight=False, color_system=None)
    monkeypatch.setattr(shown, "stderr", lambda: console)
    with progress_reporter() as report:
        report("run [/foo]\x1b[31m: answers", 0, 4)
        report("run [/foo]\x1b[31m: answers", 1, 4)
        progress("inner", 1, 3)
    text = file.getvalue()
    assert r"run [/foo]\x1b[31m: answers" in text  # no markup, no colour
    assert "\x1b[31m" not in text
    assert "1/4" in text
    assert re.search(r"about \d+ s left", text)
    assert "inner" in text


def test_when_quiet_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        set_loudness("quiet")
        with progress_reporter() as report, working("x"):
            report("y", 1, 2)
            progress("z", 1, 2)
    finally:
        set_loudness("normal")
    assert capsys.readouterr() == ("", "")


def test_tracked_items_tell_how_many_are_done() -> None:
    seen: list[tuple[str, float, float]] = []
    with watching(lambda *one: seen.append(one)):
        assert list(tracked("ab", "letters")) == ["a", "b"]
    assert seen == [("letters", 0, 2), ("letters", 1, 2), ("letters", 2, 2)]
    progress("nobody watches", 0, 1)
