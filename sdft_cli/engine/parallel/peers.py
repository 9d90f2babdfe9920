"""Each process of a run watches the others, so that one that fails, is killed or falls silent ends the run.

Processes that wait for each other would wait for ever for one that is gone, and those that started them end the rest
without a word. So each process tells the others how it is, once a second, in the store by which they found each other:
its process id, and whether it is at work, done, interrupted or failed, and why. One that is gone without having said
`done` is missed within two seconds on the same machine (its process id is gone), on another machine after `SILENT`
seconds without a sign of life.

The thread of the work hears of it where it waits for the others (`explain`), and leaves in its own way. If it does not
come there within `GRACE` seconds, the watching thread says the sentence and ends the process. Nothing is saved then: a
checkpoint is written whole or not at all, so the last one stays as it is. While one is written nobody is ended, and
those that leave wait for it: what started them ends the others soon after the first.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sdft_cli.engine.models.interrupts import Interrupted, check
from sdft_cli.errors import LostProcess, MachineError
from sdft_cli.notices import ERROR, say, set_rank

EVERY, SILENT, GRACE, HEARD, WRITTEN = 1.0, 40, 10.0, 15.0, 600.0
"""Seconds between two signs of life; signs that are missed until a process counts as gone; seconds until the watching
thread ends the process; most seconds that one that leaves early waits until it was heard, and for a checkpoint."""
NEXT_STEP = "the last checkpoint is whole: go on with `sdft train --resume`, with as many processes or others."
State = Literal["at work", "done", "failed", "interrupted"]


@dataclass(frozen=True)
class Sign:
    """What a process tells of itself: where it runs, its id and start there, how it is, and how often it told so.

    `passed_on`: it leaves since another one did, and its reason is the sentence about that one. `writes`: a checkpoint,
    so that it has to be waited for.
    """

    machine: str
    process: int
    started: str
    state: State = "at work"
    reason: str = ""
    passed_on: bool = False
    beat: int = 0
    writes: bool = False


@dataclass(frozen=True)
class Finding:
    """A process that is not with the others any more: its rank, how it left, and the sentence that says so."""

    rank: int
    state: Literal["gone", "failed", "interrupted"]
    sentence: str


def machine_name() -> str:
    """Return what tells this machine from others, and a container from its host: their process ids differ."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    space = Path("/proc/self/ns/pid")
    parts = [socket.gethostname(), boot.read_text(encoding="ascii").strip() if boot.is_file() else ""]
    return " ".join([*parts, os.readlink(space) if space.is_symlink() else ""])


def start_of(process: int) -> str | None:
    """Return when a process of this machine started, in the system's ticks; None if it has ended.

    "" where the system does not tell (no Linux), as long as the process is there.
    """
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return "" if not Path("/proc/self/stat").is_file() else None
    return None if fields[0] in "ZX" else fields[19]


class Peers:
    """This process among the others. Its own thread tells and looks; `close` ends it."""

    def __init__(self, store: Any, rank: int, count: int) -> None:
        """Take a key-value store that all processes reach, and that no other thread uses."""
        self.rank, self.count, self._store = rank, count, store
        self._own = Sign(machine_name(), os.getpid(), start_of(os.getpid()) or "")
        self._others: dict[int, Sign] = {}
        self._missed = dict.fromkeys(range(count), 0)
        self._beats: dict[int, int] = {}
        self._lock = threading.RLock()
        self._leaving = False
        self._explained: str | None = None
        self._tell()

    def meet(self, seconds: float) -> None:
        """Wait until every process has told that it is there, and begin to watch them.

        Raises:
            MachineError: one did not come within so many seconds, or is gone already.
        """
        end = time.monotonic() + seconds
        while missing := {*range(self.count)} - {self.rank, *self._others}:
            self.explain()
            if time.monotonic() > end:
                if self.rank == min({self.rank, *self._others}):
                    set_rank(0)
                raise MachineError(
                    f"Process {min(missing)} of {self.count} (counted from 0) did not come within {seconds:.0f} s: "
                    "start all of them."
                )
            time.sleep(EVERY / 10)
        self.watch()

    def watch(self) -> None:
        """Begin to watch."""
        threading.Thread(target=self._watch, name="sdft-peers", daemon=True).start()

    def explain(self, error: BaseException | None = None) -> None:
        """Say why the others cannot be waited for; called by the thread of the work.

        Args:
            error: what waiting for them raised: somebody is gone, and who will be known soon. None: nobody need be.

        Raises:
            Interrupted: a signal asked this process or another one to stop.
            LostProcess: a process failed or is gone.
        """
        end = time.monotonic() + (0.0 if error is None else SILENT + 5.0)
        while (found := self._look()) is None and time.monotonic() < end:
            check()
            time.sleep(EVERY / 4)
        if found is None:
            if error is not None:
                reason = (str(error).splitlines() or [""])[0]
                raise LostProcess(f"The processes lost each other ({reason}): {NEXT_STEP}") from error
            return
        with self._lock:
            self._leaving = True
        if found.state == "interrupted":
            raise Interrupted
        self._explained = found.sentence
        if self._speaks_of(found):
            set_rank(0)
        raise LostProcess(found.sentence) from error

    @contextmanager
    def writing(self) -> Iterator[None]:
        """This process writes what must not be lost: it is not ended meanwhile, and others that leave wait for it."""
        self._set_writes(True)
        try:
            yield
        finally:
            self._set_writes(False)

    def _set_writes(self, writes: bool) -> None:
        with self._lock:
            self._own = replace(self._own, writes=writes)
        self._tell()

    def leave(self, state: State, reason: str = "") -> None:
        """Tell the others that this process leaves; before the end of the work it waits until it was heard, and until
        the first one has written what it writes."""
        with self._lock:
            self._leaving = True
            self._own = replace(self._own, state=state, reason=reason, passed_on=reason == self._explained)
        self._tell()
        if state != "done":
            end = time.monotonic() + HEARD
            while time.monotonic() < end and not self._heard():
                time.sleep(EVERY / 10)
            while time.monotonic() < end + WRITTEN and self._first_writes():
                time.sleep(EVERY / 4)

    def _first_writes(self) -> bool:
        self._look()
        first = self._others.get(0)
        return first is not None and first.writes and first.state == "at work" and not self._is_gone(first)

    def _heard(self) -> bool:
        """Say whether the first process knows that this one leaves; of the first, which may hold the store, all others.

        Those that leave themselves know, and those that are gone need not.
        """
        self._look()
        whom = [rank for rank in ((0,) if self.rank else range(1, self.count)) if rank in self._others]
        at_work = [r for r in whom if self._others[r].state == "at work" and not self._is_gone(self._others[r])]
        try:
            return all(self._store.check([f"{self.rank} is heard by {rank}"]) for rank in at_work)
        except Exception:  # the store went with the process that held it
            return True

    def _watch(self) -> None:
        found: Finding | None = None
        while found is None:
            time.sleep(EVERY)
            with self._lock:
                if self._leaving:
                    return
            self._beat()
            found = self._look()
        time.sleep(2 * GRACE if found.state == "interrupted" else GRACE)
        while self._own.writes:
            self._beat()
            time.sleep(EVERY)
        with self._lock:
            if self._leaving:
                return
            if self._speaks_of(found):
                set_rank(0)
                if sys.stderr.isatty():
                    sys.stderr.write("\x1b[?25h")  # a live view may have hidden the cursor
                say(f"{ERROR}{found.sentence}")
            os._exit(130 if found.state == "interrupted" else 1)

    def _beat(self) -> None:
        with self._lock:
            self._own = replace(self._own, beat=self._own.beat + 1)
        self._tell()

    def _tell(self) -> None:
        with suppress(Exception):  # the store goes with the process that holds it: the others see that, too
            self._store.set(str(self.rank), json.dumps(asdict(self._own)))

    def _look(self) -> Finding | None:
        """Read what the others tell; return the first that is not with us any more."""
        with self._lock:
            for rank in (rank for rank in range(self.count) if rank != self.rank):
                if told := self._read(rank):
                    self._others[rank] = told
            found = (self._judge(rank, told) for rank, told in sorted(self._others.items()))
            return next((finding for finding in found if finding), None)

    def _judge(self, rank: int, told: Sign) -> Finding | None:
        who = f"Process {rank} of {self.count} (counted from 0)"
        if told.state == "done":
            return None
        if told.state in ("interrupted", "failed"):
            with suppress(Exception):
                self._store.set(f"{rank} is heard by {self.rank}", "")
        if told.state == "interrupted":
            return Finding(rank, "interrupted", f"{who} was interrupted: {NEXT_STEP}")
        if told.state == "failed":
            return Finding(rank, "failed", told.reason if told.passed_on else f"{who} failed: {told.reason}")
        if self._is_gone(told):
            told = self._others[rank] = self._read(rank) or told  # what it said last
            if told.state != "at work":
                return self._judge(rank, told)
            return Finding(
                rank, "gone", f"{who} was killed or crashed (its process {told.process} is gone), and {NEXT_STEP}"
            )
        if threading.current_thread().name == "sdft-peers":  # which looks once in `EVERY`
            self._missed[rank] = self._missed[rank] + 1 if told.beat == self._beats.get(rank) else 0
            self._beats[rank] = told.beat
        if self._missed[rank] > SILENT:
            return Finding(rank, "gone", f"{who} gave no sign of life for {SILENT} s, and {NEXT_STEP}")
        return None

    def _is_gone(self, sign: Sign) -> bool:
        return sign.machine == self._own.machine and start_of(sign.process) != sign.started

    def _read(self, rank: int) -> Sign | None:
        try:
            if not self._store.check([str(rank)]):
                return None
            return Sign(**json.loads(self._store.get(str(rank))))
        except Exception:  # the store went with the process that held it
            return None

    def _speaks_of(self, found: Finding) -> bool:
        """Say whether this process is the one to say it: the first that is there. The first one says its own errors."""
        if found.rank == 0 and found.state != "gone":
            return False
        before = [self._others[rank] for rank in range(self.rank) if rank != found.rank and rank in self._others]
        return all(self._is_gone(sign) for sign in before)
