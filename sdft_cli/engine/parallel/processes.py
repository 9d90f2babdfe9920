"""What the processes of a run say to each other. A single one (`ALONE`) has nobody to speak to, and all the work."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh

from sdft_cli.engine.models.interrupts import Interrupted
from sdft_cli.engine.parallel.launch import from_launcher, launched
from sdft_cli.engine.parallel.layers import Layers, blocks_of, shard_blocks
from sdft_cli.engine.parallel.peers import Peers
from sdft_cli.engine.parallel.sharding import Sharding
from sdft_cli.engine.parallel.share import Rows, shares
from sdft_cli.errors import InterruptedBySignal, LostProcess, MachineError, SdftError
from sdft_cli.notices import set_rank

T = TypeVar("T")
MEETING = timedelta(seconds=45)
"""How long processes wait at the start until all of them are there: one that is killed before is missed after that."""
WORKING = timedelta(days=7)
"""How long one waits for what another one does; that the other one is alive, `Peers` see."""
BUCKET = 1 << 25
"""Numbers that are added up at once."""


class Processes:
    """The processes of a run, as one of them sees them; this class is a run in one process.

    All processes make the same calls in the same order.
    """

    rank = 0
    count = 1

    @property
    def first(self) -> bool:
        """Say whether this one writes the files and speaks."""
        return self.rank == 0

    def same(self, value: T) -> T:
        """Return the value that the first process gives, on every process."""
        return value

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes by rank, on every process."""
        return [value]

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Add up tensors over the processes, in place and in fp32; all processes get the same numbers."""

    def wait(self) -> None:
        """Wait until every process is here."""

    def check(self) -> None:
        """Raise LostProcess if a process has failed or is gone; not if one was interrupted."""

    @contextmanager
    def writing(self) -> Iterator[None]:
        """What the others have to wait for, though this process does not look at them meanwhile: a checkpoint."""
        yield

    def close(self) -> None:
        """End: all work is done."""

    def leave(self, error: BaseException) -> BaseException:
        """Tell the others that an error ends this process; return the error that is to be raised."""
        return error

    def mine(self, rows: Rows, shared: bool = True) -> list[int]:
        """Return which rows are this process's (`shares`); one process has them in their own order."""
        if self.count == 1:
            return list(range(len(rows)))
        return shares(rows, self.count, shared)[self.rank]

    def spread(self, rows: Rows, work: Callable[[list[int]], Sequence[T]], shared: bool = True) -> list[T]:
        """Have each row worked on by one process; return what all found, in the order of the rows, on every process.

        Args:
            rows: token ids, by which they are shared out.
            work: takes indices of rows and returns a result for each; not called for none.
            shared: as `shares`.
        """
        mine = self.mine(rows, shared)
        own = list(work(mine)) if mine else []
        found = {i: each for part in self.gather(dict(zip(mine, own, strict=True))) for i, each in part.items()}
        return [found[i] for i in range(len(rows))]

    def in_turn(self, work: Callable[[], T]) -> T:
        """Do something that writes where all processes write, the first process before the others."""
        if not self.first:
            self.wait()
        done = work()
        if self.first:
            self.wait()
        return done

    def shard(self, model: Any, device: torch.device, sharding: Sharding) -> Layers:
        """Cut the layers of a peft model on the CPU into shards, one for each process; move the rest to the device.

        Raises:
            UsageError: as `blocks_of`.
            ValueError: there is one process only.
        """
        raise ValueError("one process has nobody to share a model with")

    def agree(self, what: str, value: object) -> None:
        """Refuse to go on if the processes have other values of something that has to be one.

        Raises:
            MachineError: names what it is, and the first process that differs from the first one.
        """
        found = self.gather(value)
        for rank, other in enumerate(found):
            if other != found[0]:
                raise MachineError(
                    f"Process {rank} has another {what} than process 0: give all processes the same command, the same "
                    "files and the same kind of machine."
                )


ALONE = Processes()
"""A run in one process."""


class Several(Processes):
    """One of several processes, which found each other through `torch.distributed`."""

    def __init__(self, peers: Peers, talk: Any, adding: Any) -> None:
        """Take the peers, and the groups in which values are told and tensors are added up."""
        self.rank, self.count = peers.rank, peers.count
        self._peers, self._talk, self._adding = peers, talk, adding
        self._layers: Layers | None = None

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # of the library: a connection that closed
            self._peers.explain(error)
            raise

    @contextmanager
    def _all_here(self) -> Iterator[None]:
        """What all processes do together once each of them has come to it, and needs no layer any more."""
        if self._layers:
            self._layers.serve()
        with self._together():
            yield

    def shard(self, model: Any, device: torch.device, sharding: Sharding) -> Layers:
        blocks = blocks_of(model.get_base_model(), sharding)

        def receive(tensor: Tensor) -> None:
            if sharding.one_reads:
                dist.broadcast(tensor, src=0, group=self._adding)

        with self._together():
            mesh = DeviceMesh.from_group(self._adding, device.type)
            shard_blocks(model, blocks, device, mesh, receive)
        self._layers = Layers(blocks, self._least, self._together)
        return self._layers

    def _least(self, number: int) -> int:
        least = torch.tensor(number)
        with self._together():
            dist.all_reduce(least, dist.ReduceOp.MIN, group=self._talk)
        return int(least)

    def same(self, value: T) -> T:
        told = [value]
        with self._all_here():
            dist.broadcast_object_list(told, src=0, group=self._talk)
        return told[0]

    def gather(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.count
        with self._all_here():
            dist.all_gather_object(found, value, group=self._talk)
        return found

    def sum(self, tensors: Sequence[Tensor]) -> None:
        bucket: list[Tensor] = []
        for tensor in tensors:
            if bucket and sum(t.numel() for t in bucket) + tensor.numel() > BUCKET:
                self._sum(bucket)
                bucket = []
            bucket.append(tensor)
        if bucket:
            self._sum(bucket)

    def _sum(self, tensors: Sequence[Tensor]) -> None:
        flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors])
        with self._all_here():
            dist.all_reduce(flat, group=self._adding)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def wait(self) -> None:
        with self._all_here():
            dist.barrier(group=self._talk)

    def check(self) -> None:
        with suppress(Interrupted):
            self._peers.explain()

    @contextmanager
    def writing(self) -> Iterator[None]:
        with self._peers.writing():
            yield

    def close(self) -> None:
        self.wait()  # an exit code of 0 says that the first one has written everything
        self._peers.leave("done")
        dist.destroy_process_group()

    def leave(self, error: BaseException) -> BaseException:
        # It ends in any case: those that started it send a signal to each process once another one has ended.
        _on_signals(signal.SIG_IGN)
        if isinstance(error, Interrupted | KeyboardInterrupt):
            try:
                self.check()  # a process that is gone makes those that started it stop the others
            except LostProcess as found:
                error = found
        if isinstance(error, Interrupted | KeyboardInterrupt):
            self._peers.leave("interrupted")
            return error if isinstance(error, KeyboardInterrupt) else InterruptedBySignal("interrupted.")
        self._peers.leave("failed", str(error) if isinstance(error, SdftError) else f"{type(error).__name__}: {error}")
        return error


def _on_signals(handler: Any) -> dict[int, Any]:
    """Have SIGTERM and SIGINT handled so; return what did before. Nothing changes in a thread, which cannot do that."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}


def join() -> Processes:
    """Find the other processes of this run, and begin to watch them.

    Processes on a CPU add up by gloo, processes with a GPU each by nccl.

    Raises:
        MachineError: this machine has fewer GPUs than processes, or the others did not come.
    """
    rank, count = launched()
    if count == 1:
        return ALONE
    local = from_launcher("LOCAL_RANK")
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise MachineError(
                f"Process {rank} needs a GPU of its own and this machine has {torch.cuda.device_count()}: start as "
                "many processes as there are GPUs."
            )
        torch.cuda.set_device(local)
    address = (os.environ["MASTER_ADDR"], from_launcher("MASTER_PORT"))
    life = f"{os.environ.get('TORCHELASTIC_RUN_ID', '')}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    try:
        # One for each thread: a call that waits holds its store.
        stores = [PrefixStore(f"sdft/{life}/{use}", _store(address, rank)) for use in ("peers", "groups")]
        peers = Peers(stores[0], rank, count)
        peers.meet(MEETING.total_seconds())
        dist.init_process_group("gloo", store=stores[1], rank=rank, world_size=count, timeout=MEETING)
        talk = dist.new_group(backend="gloo", timeout=WORKING)
        adding = dist.new_group(backend="nccl", timeout=WORKING) if torch.cuda.is_available() else talk
        dist.barrier(group=talk)
    except MachineError:
        raise
    except (OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        if rank == 1:  # the first one is the one that cannot be reached
            set_rank(0)
        raise MachineError(f"The {count} processes did not find each other ({reason}): start all of them.") from error
    return Several(peers, talk, adding)


_hosted: dict[tuple[str, int], Any] = {}
"""The store of this process that the others use, by address: one for its life."""


def _store(address: tuple[str, int], rank: int) -> Any:
    """Return a connection to the store in which processes meet: the first one holds it, unless its launcher does."""
    wait = timedelta(seconds=30)
    if rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and address not in _hosted:
        _hosted[address] = TCPStore(*address, is_master=True, wait_for_workers=False, timeout=wait)
    end = time.monotonic() + MEETING.total_seconds()
    while True:  # here, and not in the library, which hears no signal meanwhile
        try:
            socket.create_connection(address, timeout=5).close()
            break
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
    return TCPStore(*address, is_master=False, wait_for_workers=False, timeout=wait)
