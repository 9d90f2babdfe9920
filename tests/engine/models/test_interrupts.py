from __future__ import annotations

import os
import signal

import pytest

from sdft_cli.engine.models.interrupts import Interrupted, check, interruptible, watched_signals


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_pure_computation_at_once(number: int) -> None:
    reached = []

    def computation() -> None:
        with interruptible():
            send(number)
            reached.append("after the signal")

    with watched_signals(), pytest.raises(Interrupted):
        computation()
    assert not reached


def test_elsewhere_a_signal_waits_for_the_next_computation_or_check() -> None:
    reached = []
    with watched_signals():
        send()
        reached.append("update")
        with pytest.raises(Interrupted), interruptible():
            reached.append("computation")
        with interruptible():  # it was raised once, and once only
            reached.append("saving")
        send()
        with pytest.raises(Interrupted):
            check()
        check()
    assert reached == ["update", "saving"]


def test_nested_blocks_are_interruptible_to_the_end_of_the_outer_one() -> None:
    def nested() -> None:
        with interruptible():
            with interruptible():
                pass
            send()

    with watched_signals():
        with pytest.raises(Interrupted):
            nested()
        send()  # outside of both: noted only
        with pytest.raises(Interrupted):
            check()


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(ZeroDivisionError), watched_signals():
        raise ZeroDivisionError
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    with interruptible():  # nobody watches: nothing is installed
        pass
