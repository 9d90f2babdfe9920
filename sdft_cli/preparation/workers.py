"""Tokenise sessions in this process or in several; the result and its order are the same."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sdft_cli.preparation.job import IN_FLIGHT, Each, Given, Job, in_order
from sdft_cli.preparation.on_ray import on_ray
from sdft_cli.preparation.turns import Revealed, SessionTurns
from sdft_cli.records import Session

OnProgress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and how much there is."""


_job: Job | None = None


def _start_worker(path: str) -> None:
    global _job
    _job = pickle.loads(Path(path).read_bytes())  # written by the parent process


def _run_in_worker(what: str, given: Given) -> Any:
    assert _job is not None
    return getattr(_job, what)(given)


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


@contextmanager
def _here(job: Job) -> Iterator[Each]:
    yield lambda what, items: map(getattr(job, what), items)


@contextmanager
def _in_processes(job: Job, workers: int) -> Iterator[Each]:
    context = multiprocessing.get_context("spawn")  # tokenizers' threads do not survive a fork
    with TemporaryDirectory(prefix="sdft-") as folder:
        path = Path(folder) / "job"
        path.write_bytes(pickle.dumps(job))
        pool = ProcessPoolExecutor(workers, context, _start_worker, (str(path),))

        def each(what: str, items: Iterable[Given]) -> Iterator[Any]:
            def submit(given: Given) -> Future[Any]:
                with _interrupts_held_back():
                    return pool.submit(_run_in_worker, what, given)

            for future in in_order(submit, items, IN_FLIGHT * workers):
                yield future.result()

        try:
            yield each
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _place(job: Job, sessions: int) -> AbstractContextManager[Each]:
    """Return where the work is done: here, in processes, or on a cluster."""
    config = job.config
    if config.engine == "ray":
        return on_ray(job)
    return _here(job) if config.workers == 1 or sessions < 2 else _in_processes(job, min(config.workers, sessions))


def _revealed(job: Job, sessions: Sequence[Session], each: Each, progress: OnProgress) -> dict[str, Revealed]:
    """Return what the sessions of each group give away; a session that is alone in its group is searched later."""
    if job.redact is None:
        return {}
    sizes = Counter(session.group for session in sessions)
    total = sum(size for size in sizes.values() if size > 1)
    shared: dict[str, Revealed] = {}
    found = each("search", (Given(session) for session in sessions if sizes[session.group] > 1))
    for number, (group, values) in enumerate(found, start=1):
        of_group = shared.setdefault(group, {})
        for value, kind in values.items():
            of_group.setdefault(value, kind)
        progress("Looking for secrets", number, total)
    return shared


def map_sessions(job: Job, sessions: Sequence[Session], progress: OnProgress) -> Generator[SessionTurns, None, None]:
    """Yield the turns of each session, in the order of the sessions.

    What one session of a group gives away leaves all of them, so these are searched before. With `config.workers` > 1
    processes share the work, with `config.engine` "ray" the nodes of a cluster, a few sessions at a time.
    """
    total = len(sessions)
    with _place(job, total) as each:
        shared = _revealed(job, sessions, each, progress)
        progress("Counting tokens", 0, total)
        given = (Given(session, shared.get(session.group)) for session in sessions)
        for number, turns in enumerate(each("run", given), start=1):
            yield turns
            progress("Counting tokens", number, total)
