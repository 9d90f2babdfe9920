"""Many requests at once, while something else is done: a server decodes together what it was asked for together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import Generic, TypeVar

from sdft_cli.engine.models.interrupts import interruptible

T = TypeVar("T")
AT_ONCE = 256
"""Requests in flight, at most: as many sequences as vLLM decodes together by default."""


class Flight(Generic[T]):
    """Jobs that run in threads. None of them is waited for at the end of the process."""

    def __init__(self, jobs: Sequence[Callable[[], T]]) -> None:
        """Begin."""
        self._lock = threading.Lock()
        self._futures: list[Future[T]] = [Future() for _ in jobs]
        self._jobs = iter(list(zip(jobs, self._futures, strict=True)))
        for _ in range(min(AT_ONCE, len(jobs))):
            threading.Thread(target=self._work, daemon=True).start()

    def results(self) -> list[T]:
        """Wait, and return what the jobs gave, in their order; the error of the first one that failed is raised."""
        with interruptible():
            done, _ = wait(self._futures, return_when=FIRST_EXCEPTION)
        for future in done:
            if error := future.exception():
                self._stop()
                raise error
        return [future.result() for future in self._futures]

    def _next(self) -> tuple[Callable[[], T], Future[T]] | None:
        with self._lock:
            return next(self._jobs, None)

    def _stop(self) -> None:
        with self._lock:
            self._jobs = iter(())

    def _work(self) -> None:
        while (found := self._next()) is not None:
            job, future = found
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)
