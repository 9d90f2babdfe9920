"""One process that watches others: real processes, and the store that several processes have."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest

pytest.importorskip("torch")

import torch.distributed as dist

from sdft_cli import notices
from sdft_cli.engine.models.interrupts import Interrupted
from sdft_cli.engine.parallel import peers
from sdft_cli.engine.parallel.peers import Peers, Sign, machine_name, start_of
from sdft_cli.errors import MachineError


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    found = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield found
    found.kill()
    found.wait()


@pytest.fixture(autouse=True)
def ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_rank", 0)


def told(store: Any, rank: int, sign: Sign) -> None:
    store.set(str(rank), json.dumps(asdict(sign)))


def sign_of(process: subprocess.Popen[bytes]) -> Sign:
    started = start_of(process.pid)
    assert started is not None
    return Sign(machine_name(), process.pid, started)


def test_a_process_that_is_killed_is_named(other: subprocess.Popen[bytes]) -> None:
    store = dist.HashStore()
    own = Peers(store, 0, 2)
    told(store, 1, sign_of(other))
    own.explain()
    other.kill()
    # Not waited for yet: a dead process keeps its id until then.
    with pytest.raises(MachineError) as caught:
        own.explain(RuntimeError("Connection closed by peer"))
    assert str(caught.value) == (
        f"Process 1 of 2 (counted from 0) was killed or crashed (its process {other.pid} is gone), and the last "
        "checkpoint is whole: go on with `sdft train --resume`, with as many processes or others."
    )


def test_another_process_with_the_same_id_is_not_the_one(other: subprocess.Popen[bytes]) -> None:
    store = dist.HashStore()
    own = Peers(store, 0, 2)
    told(store, 1, replace(sign_of(other), started="1"))
    with pytest.raises(MachineError, match="was killed or crashed"):
        own.explain()


def test_a_process_that_is_done_may_be_gone(other: subprocess.Popen[bytes]) -> None:
    store = dist.HashStore()
    own = Peers(store, 0, 2)
    told(store, 1, replace(sign_of(other), state="done"))
    other.kill()
    own.explain()


def test_what_a_process_says_last_counts(other: subprocess.Popen[bytes]) -> None:
    """It is gone, and said that it failed before: why, and not that it crashed."""
    store = dist.HashStore()
    own = Peers(store, 0, 2)
    told(store, 1, sign_of(other))
    own.explain()
    told(store, 1, replace(sign_of(other), state="failed", reason="The disk is full: free space."))
    other.kill()
    with pytest.raises(
        MachineError, match=r"^Process 1 of 2 \(counted from 0\) failed: The disk is full: free space.$"
    ):
        own.explain()
    assert store.check(["1 is heard by 0"])


def test_an_interrupt_of_one_is_one_of_all(other: subprocess.Popen[bytes]) -> None:
    store = dist.HashStore()
    own = Peers(store, 0, 2)
    told(store, 1, replace(sign_of(other), state="interrupted"))
    with pytest.raises(Interrupted):
        own.explain()


def test_a_process_that_does_not_come(other: subprocess.Popen[bytes]) -> None:
    store = dist.HashStore()
    told(store, 2, sign_of(other))
    own = Peers(store, 1, 3)
    with pytest.raises(MachineError, match=r"^Process 0 of 3 \(counted from 0\) did not come within 0 s: start all"):
        own.meet(0.2)
    told(store, 0, replace(sign_of(other), started="1"))
    with pytest.raises(MachineError, match="Process 0 of 3"):
        own.explain()


def test_who_writes_is_not_ended_and_is_waited_for(
    other: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one fails while this one writes: its watching thread waits; and one that leaves waits for the first."""
    monkeypatch.setattr(peers, "EVERY", 0.01)
    monkeypatch.setattr(peers, "GRACE", 0.02)
    ended: list[int] = []
    monkeypatch.setattr(peers.os, "_exit", ended.append)
    store = dist.HashStore()
    own = Peers(store, 0, 2)
    told(store, 1, sign_of(other))
    own.watch()
    with own.writing():
        told(store, 1, replace(sign_of(other), state="failed", reason="Disk."))
        peers.time.sleep(0.4)
        assert ended == []
        assert Sign(**json.loads(store.get("0"))).writes
        leaver = Peers(store, 1, 2)
        gone = threading.Thread(target=leaver.leave, args=("failed", "Disk."))
        gone.start()
        gone.join(0.3)
        assert gone.is_alive()
    gone.join(5)
    assert not gone.is_alive()
    peers.time.sleep(0.3)
    assert ended == [1]  # nothing is written any more, and this one did not leave by itself


def test_the_first_that_is_there_speaks(other: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the processes 0, 1 and 2 the first one is killed: 1 says so, 2 is silent."""
    for rank, speaks in ((1, True), (2, False)):
        monkeypatch.setattr(notices, "_rank", rank)
        store = dist.HashStore()
        own = Peers(store, rank, 3)
        told(store, 0, replace(sign_of(other), started="1"))
        told(store, 3 - rank, sign_of(other))
        with pytest.raises(MachineError, match="Process 0 of 3"):
            own.explain()
        assert notices.speaks() is speaks


def test_a_process_of_another_machine_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process id says nothing here; its signs of life are counted by the thread that watches."""
    monkeypatch.setattr(peers, "EVERY", 0.01)
    monkeypatch.setattr(peers, "SILENT", 20)
    store = dist.HashStore()
    own = Peers(store, 0, 2)
    far = Sign("another machine", 1, "1")
    told(store, 1, far)
    own.watch()
    for beat in range(30):
        told(store, 1, replace(far, beat=beat))
        own.explain()
        peers.time.sleep(0.01)
    with pytest.raises(MachineError, match="gave no sign of life for 20 s"):
        own.explain(RuntimeError("timed out"))


def test_a_lost_connection_that_nobody_explains(
    other: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "SILENT", -5)  # no patience
    store = dist.HashStore()
    own = Peers(store, 0, 2)
    told(store, 1, sign_of(other))
    own._missed[1] = -100
    with pytest.raises(MachineError, match=r"^The processes lost each other \(Connection reset\): the last checkpoint"):
        own.explain(RuntimeError("Connection reset\n[more]"))
