from __future__ import annotations

import pytest

from sdft_cli.engine.doctor.finding import Finding, run_checks
from sdft_cli.errors import WARNING, DataError, InterruptedBySignal


def raising(error: BaseException) -> str:
    raise error


def test_each_check_is_a_line_and_the_next_one_runs() -> None:
    checks = {
        "a": lambda: "fine",
        "b": lambda: f"so so; {WARNING}slow",
        "c": lambda: raising(DataError("No good: mend it.")),
        "d": lambda: raising(RuntimeError("kernel\nof many lines")),
        "e": lambda: "fine",
    }
    assert list(run_checks(checks)) == [
        Finding("a", "fine"),
        Finding("b", "so so; slow", "warn"),
        Finding("c", "No good: mend it.", "fail", 3),
        Finding("d", "ends in RuntimeError: kernel", "fail", 1),
        Finding("e", "fine"),
    ]


def test_an_interruption_ends_all_of_them() -> None:
    with pytest.raises(InterruptedBySignal):
        list(run_checks({"a": lambda: raising(InterruptedBySignal("stop")), "b": lambda: "never"}))
    with pytest.raises(KeyboardInterrupt):
        list(run_checks({"a": lambda: raising(KeyboardInterrupt())}))
