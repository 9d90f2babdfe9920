"""Tokenise sessions in this process or in several; the result and its order are the same."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from sdft_cli.config import PrepareConfig
from sdft_cli.preparation.turns import Redact, SessionTurns, turns_of
from sdft_cli.prompts.chat import ChatPrompts
from sdft_cli.prompts.incremental import TokenCounter
from sdft_cli.records import Session

Pending = TypeVar("Pending")
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


IN_FLIGHT = 4
"""Sessions per worker that are read, and not yet handed on: enough that none waits, few enough for memory."""


def in_order(submit: Callable[[Session], Pending], sessions: Iterable[Session], most: int) -> Iterator[Pending]:
    """Submit sessions and yield what `submit` returned in their order, with at most `most` that were not yielded."""
    waiting: deque[Pending] = deque()
    for session in sessions:
        waiting.append(submit(session))
        if len(waiting) >= most:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def _in_processes(job: Job, sessions: Sequence[Session], workers: int) -> Iterator[SessionTurns]:
    context = multiprocessing.get_context("spawn")  # tokenizers' threads do not survive a fork
    with TemporaryDirectory(prefix="sdft-") as folder:
        path = Path(folder) / "job"
        path.write_bytes(pickle.dumps(job))
        pool = ProcessPoolExecutor(workers, context, _start_worker, (str(path),))

        def submit(session: Session) -> Future[SessionTurns]:
            with _interrupts_held_back():
                return pool.submit(_run_in_worker, session)

        try:
            for future in in_order(submit, sessions, IN_FLIGHT * workers):
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def map_sessions(job: Job, sessions: Sequence[Session], progress: OnProgress) -> Iterator[SessionTurns]:
    """Yield the turns of each session, in the order of the sessions.

    With `config.workers` > 1 processes share the work, with `config.engine` "ray" the nodes of a cluster, a few
    sessions at a time.
    """
    total, config = len(sessions), job.config
    if config.engine == "ray":
        from sdft_cli.preparation.on_ray import on_ray

        results = on_ray(job, sessions)
    elif config.workers == 1 or total < 2:
        results = map(job.run, sessions)
    else:
        results = _in_processes(job, sessions, min(config.workers, total))
    progress("Counting tokens", 0, total)
    for number, turns in enumerate(results, start=1):
        yield turns
        progress("Counting tokens", number, total)
