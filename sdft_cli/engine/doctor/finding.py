"""What a check found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from sdft_cli.errors import WARNING, InterruptedBySignal, MachineError, SdftError
from sdft_cli.notices import tracked

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """A line of `sdft doctor`; `code` is the exit code that a run would end with, 0 unless `level` is `fail`."""

    what: str
    text: str
    level: Level = "ok"
    code: int = 0


def warn(what: str, text: str) -> Finding:
    """Return a finding that costs something and stops nothing."""
    return Finding(what, text.replace(WARNING, ""), "warn")


def fail(what: str, text: str, code: int = MachineError.exit_code) -> Finding:
    """Return a finding that a run would end with."""
    return Finding(what, text, "fail", code)


Check = Callable[[], str]
"""Returns what was found, with `WARNING` in it if it is one; raises `SdftError` with the sentence of a failure."""


def run_checks(checks: Mapping[str, Check]) -> Iterator[Finding]:
    """Yield a finding for each check, in order; an interruption ends all of them."""
    for what, check in tracked(checks.items(), "Testing the engine"):
        try:
            text = check()
        except InterruptedBySignal:
            raise
        except SdftError as error:
            yield fail(what, str(error), error.exit_code)
        except Exception as error:  # libraries and kernels fail in their own ways; the next check runs all the same
            reason = (str(error).splitlines() or ["no reason given"])[0]
            yield fail(what, f"ends in {type(error).__name__}: {reason}")
        else:
            yield warn(what, text) if WARNING in text else Finding(what, text)
