"""SIGINT and SIGTERM while training: they stop it at once, but never between two halves of a change of its state.

Signals are noted, and raised only inside `interruptible` blocks, which hold pure computation: forward and backward
passes, decoding. Whatever switches weights or updates them lies outside, so that what is saved after an interrupt is
the state at the end of a step.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal asked the run to stop. Not an `Exception`, so that no handler of errors takes it for one."""


class _State:
    watching = False
    pending = False
    interruptible = False


_state = _State()


def _handle(number: int, frame: FrameType | None) -> None:
    if _state.interruptible:
        _state.interruptible = False
        raise Interrupted
    _state.pending = True


def check() -> None:
    """Raise `Interrupted` if a signal came and nothing was said about it yet."""
    if _state.pending:
        _state.pending = False
        raise Interrupted


@contextmanager
def interruptible() -> Iterator[None]:
    """Pure computation: a signal ends it at once. Without `watched_signals` around it, it does nothing."""
    outer = _state.interruptible
    if _state.watching and not outer:
        check()
        _state.interruptible = True
    try:
        yield
    finally:
        _state.interruptible = outer


@contextmanager
def watched_signals() -> Iterator[None]:
    """Note SIGINT and SIGTERM instead of dying from them; what handled them before does so again afterwards."""
    before = [signal.signal(number, _handle) for number in _SIGNALS]
    _state.watching, _state.pending, _state.interruptible = True, False, False
    try:
        yield
    finally:
        _state.watching = _state.interruptible = False
        for number, handler in zip(_SIGNALS, before, strict=True):
            signal.signal(number, handler)
