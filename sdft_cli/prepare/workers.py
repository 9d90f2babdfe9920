"""Measure sessions in this process or in several; the result and its order are the same."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

from sdft_cli.config import PrepareConfig
from sdft_cli.prepare.turns import Redact, SessionTurns, turns_of
from sdft_cli.prompts.chat import ChatPrompts
from sdft_cli.prompts.incremental import Measurer
from sdft_cli.records import Session


@dataclass(frozen=True)
class Job:
    """What every session goes through. Pickled once for each worker process."""

    config: PrepareConfig
    prompts: ChatPrompts
    redact: Redact | None = field(default=None)

    @cached_property
    def measurer(self) -> Measurer:
        return Measurer(self.prompts)

    def run(self, session: Session) -> SessionTurns:
        """Strip, redact and measure one session."""
        return turns_of(session, self.measurer, self.config, self.redact)


_job: Job | None = None


def _start_worker(job: Job) -> None:
    global _job  # a worker process has one job, given when it starts
    _job = job


def _run_in_worker(session: Session) -> SessionTurns:
    assert _job is not None
    return _job.run(session)


@contextmanager
def _children_ignore_interrupts() -> Iterator[None]:
    """Start processes that leave Ctrl-C to this one, which stops them; a terminal sends it to all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def map_sessions(
    job: Job, sessions: Sequence[Session], progress: Callable[[str, int, int], None]
) -> Iterator[SessionTurns]:
    """Yield the turns of each session, in the order of the sessions.

    With `config.workers` > 1 processes share the work, one session at a time.
    """
    total = len(sessions)
    if job.config.workers == 1 or total < 2:
        for number, session in enumerate(sessions):
            progress("Measuring", number, total)
            yield job.run(session)
    else:
        context = multiprocessing.get_context("spawn")  # tokenizers' threads do not survive a fork
        workers = min(job.config.workers, total)
        with ProcessPoolExecutor(workers, context, _start_worker, (job,)) as pool:
            try:
                with _children_ignore_interrupts():
                    pool.submit(int)  # the first task starts all processes
                for number, found in enumerate(pool.map(_run_in_worker, sessions)):
                    progress("Measuring", number, total)
                    yield found
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    progress("Measuring", total, total)
