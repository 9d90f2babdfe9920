"""Tokenise sessions in this process or in several; the result and its order are the same."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from sdft_cli.preparation.job import IN_FLIGHT, Job, in_order
from sdft_cli.preparation.on_ray import on_ray
from sdft_cli.preparation.turns import SessionTurns
from sdft_cli.records import Session

OnProgress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and how much there is."""


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


def map_sessions(job: Job, sessions: Sequence[Session], progress: OnProgress) -> Generator[SessionTurns, None, None]:
    """Yield the turns of each session, in the order of the sessions.

    With `config.workers` > 1 processes share the work, with `config.engine` "ray" the nodes of a cluster, a few
    sessions at a time.
    """
    total, config = len(sessions), job.config
    if config.engine == "ray":
        results = on_ray(job, sessions)
    elif config.workers == 1 or total < 2:
        results = map(job.run, sessions)
    else:
        results = _in_processes(job, sessions, min(config.workers, total))
    progress("Counting tokens", 0, total)
    for number, turns in enumerate(results, start=1):
        yield turns
        progress("Counting tokens", number, total)
