"""How far long work is: bars with the time left on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from sdft_cli.notices import Report, loudness, say, visible, watching
from sdft_cli.report.terminal import stderr

EVERY = 30.0
"""Seconds between two lines where there is no terminal."""
WORTH_A_LINE = 5.0
"""Seconds after which the end of a phase is told there."""


def duration(seconds: float) -> str:
    """Write seconds as a person does: 45 s, 3 min, 2 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def time_left(elapsed: float, done: float, total: float) -> str:
    """Say how long the rest will take if it goes on as until now; nothing before anything is done."""
    return f"about {duration(elapsed / done * (total - done))} left" if 0 < done < total else ""


class _Left(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(time_left(task.elapsed or 0.0, task.completed, task.total or 0.0))


class _Count(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_count(task.completed, task.total or 0.0).strip())


@contextmanager
def _bars(console: Console) -> Iterator[Report]:
    """A bar for each thing that is going on; none of them stays."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        _Count(),
        TimeElapsedColumn(),
        _Left(),
    )
    to_stdout = sys.stdout.isatty()  # else data that are printed meanwhile would come out on stderr
    with Progress(*columns, console=console, transient=True, redirect_stdout=to_stdout) as progress:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: float, total: float) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(visible(what), total=total)
            progress.update(tasks[what], completed=done, total=total, visible=done < total)

        with watching(report):
            yield report


@dataclass
class _Going:
    begun: float
    done: float = 0.0
    total: float = 1.0


class Lines:
    """What is going on, in lines: told whether it moves or not (`still`), and at its end if it took long."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._going: dict[str, _Going] = {}
        self._lock = threading.Lock()

    def report(self, what: str, done: float, total: float) -> None:
        """Take over how far something is; `done == total` ends it."""
        with self._lock:
            now = self._going.setdefault(what, _Going(self._clock()))
            now.done, now.total = done, total
            took = self._clock() - now.begun
            if done >= total:
                del self._going[what]
        if done >= total and took >= WORTH_A_LINE:
            say(f"{what}: {_count(total, total)}done in {duration(took)}")

    def still(self) -> None:
        """Tell the newest of what is going on."""
        with self._lock:
            if not self._going:
                return
            what, now = list(self._going.items())[-1]
            took = self._clock() - now.begun
        left = time_left(took, now.done, now.total)
        say(f"{what}: {_count(now.done, now.total)}after {duration(took)}{', ' * bool(left)}{left}")


def _count(done: float, total: float) -> str:
    """Write how many of how many; of one thing there is nothing to count."""
    return f"{int(done):,}/{int(total):,} " if total > 1 else ""


@contextmanager
def lines() -> Iterator[Report]:
    """Yield `report`, told in lines; `notices.progress` goes there meanwhile."""
    found, ended = Lines(), threading.Event()

    def tell() -> None:
        while not ended.wait(EVERY):
            found.still()

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        with watching(found.report):
            yield found.report
    finally:
        ended.set()
        teller.join()


@contextmanager
def progress_reporter() -> Iterator[Report]:
    """Yield `report(what, done, total)`, shown on stderr; what calls `notices.progress` meanwhile is shown, too.

    When quiet, nothing is shown.
    """
    if loudness() == "quiet":
        yield lambda what, done, total: None
        return
    console = stderr()
    bars = console.is_terminal and not console.is_dumb_terminal
    with _bars(console) if bars else lines() as report:
        yield report


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show that something is going on, and its parts that call `notices.progress`."""
    with progress_reporter() as report:
        report(what, 0, 1)
        yield
        report(what, 1, 1)
