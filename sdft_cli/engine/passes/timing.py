"""Where the time of a step goes, and how far decoding is."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_watcher: ContextVar[Callable[[float], None] | None] = ContextVar("_watcher", default=None)


@contextmanager
def watching_decoding(told: Callable[[float], None] | None) -> Iterator[None]:
    """Have `told` called after each step of decoding, with the share of the steps that there can be, 0 to 1."""
    token = _watcher.set(told)
    try:
        yield
    finally:
        _watcher.reset(token)


def decoded(steps: int, most: int) -> None:
    """Tell whoever watches that so many steps of at most `most` are done; nothing of the device is waited for."""
    if told := _watcher.get():
        told(steps / most)


class Phases:
    """Seconds spent in each phase. A phase inside another one has its seconds to itself, so the sum is the time."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    def _settle(self) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # work is queued there; without this it would count for a later phase
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._settle()
        self._open.append(name)
        try:
            yield
        finally:
            self._settle()
            self._open.pop()
