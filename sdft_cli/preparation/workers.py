"""Tokenise sessions in this process or in several; the result and its order are the same."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from sdft_cli.config import PrepareConfig
from sdft_cli.preparation.turns import Redact, SessionTurns, turns_of
from sdft_cli.prompts.chat import ChatPrompts
from sdft_cli.prompts.incremental import TokenCounter
from sdft_cli.records import Session

OnProgress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and how much there is."""


@dataclass(frozen=True)
class Job:
    """What every session goes through. Pickled once for all worker processes.

    Raises ValueError if `config.redact` asks for redaction and `redact` is missing, or the other way round.
    """

    config: PrepareConfig
    prompts: ChatPrompts
    redact: Redact | None

    def __post_init__(self) -> None:
        if self.config.redact != (self.redact is not None):
            raise ValueError("config.redact and redact disagree")

    @cached_property
    def counter(self) -> TokenCounter:
        return TokenCounter(self.prompts)

    def run(self, session: Session) -> SessionTurns:
        """Strip and redact one session, and count the tokens of its turns."""
        return turns_of(session, self.counter, self.config, self.redact)


_job: Job | None = None


def _start_worker(path: str) -> None:
    global _job
    _job = pickle.loads(Path(path).read_bytes())  # written by the parent process


def _run_in_worker(session: Session) -> SessionTurns:
    assert _job is not None
    return _job.run(session)


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Start processes that never see Ctrl-C, which a terminal sends to all: this one stops them.

    They inherit the blocked signal. Here it waits, and comes when the block ends; ignored, it would be lost.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _in_processes(
    pool: ProcessPoolExecutor, sessions: Sequence[Session], progress: OnProgress
) -> Iterator[SessionTurns]:
    try:
        with _interrupts_held_back():
            results = pool.map(_run_in_worker, sessions)
        for number, turns in enumerate(results):
            progress("Counting tokens", number, len(sessions))
            yield turns
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def map_sessions(job: Job, sessions: Sequence[Session], progress: OnProgress) -> Iterator[SessionTurns]:
    """Yield the turns of each session, in the order of the sessions.

    With `config.workers` > 1 processes share the work, one session at a time.
    """
    total = len(sessions)
    if job.config.workers == 1 or total < 2:
        for number, session in enumerate(sessions):
            progress("Counting tokens", number, total)
            yield job.run(session)
    else:
        context = multiprocessing.get_context("spawn")  # tokenizers' threads do not survive a fork
        workers = min(job.config.workers, total)
        with TemporaryDirectory(prefix="sdft-") as folder:
            path = Path(folder) / "job"
            path.write_bytes(pickle.dumps(job))
            yield from _in_processes(
                ProcessPoolExecutor(workers, context, _start_worker, (str(path),)), sessions, progress
            )
    progress("Counting tokens", total, total)
