"""Sessions tokenised on the nodes of a Ray cluster; the result and its order are those of one process."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from sdft_cli import __version__
from sdft_cli.config import PrepareConfig
from sdft_cli.errors import MachineError, MissingPackage, SdftError, UsageError
from sdft_cli.preparation.job import IN_FLIGHT, Each, Given, Job, in_order

BATCH_CHARACTERS = 1_000_000
"""A task is sessions of about so much text: it takes about a second, and Ray needs a millisecond for it."""
TRIES_AGAIN = 5
"""How often Ray runs a task again whose node or process was lost."""
NO_CPU_SECONDS = 120
"""So long the cluster may be without any CPU, e.g. while a node is replaced."""
ADVICE = "start one with `ray start --head`, or leave --ray-address out to use this machine"


def check_cluster(config: PrepareConfig) -> None:
    """Refuse what could not work, before anything is read.

    Raises:
        MissingPackage: Ray is not installed.
        UsageError: the address is none.
        MachineError: nothing listens there.
    """
    _ray()
    address = config.ray_address
    if address is None or address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"{address} is no address of a Ray cluster: write HOST:PORT, ray://HOST:PORT or auto.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise MachineError(f"No Ray cluster answers at {address} ({error}): {ADVICE}.") from error


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anybody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingPackage("--engine ray", "ray") from error
    return ray


@contextmanager
def _connected(config: PrepareConfig) -> Iterator[Any]:
    """Connect to the cluster, or start one of `config.workers` CPUs; a program's own connection is used as it is."""
    ray = _ray()
    if ray.is_initialized():
        yield ray
        return
    check_cluster(config)
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    here = {"num_cpus": config.workers, "include_dashboard": False} if config.ray_address is None else {}
    try:
        with _own_signals():
            ray.init(config.ray_address or "local", **here, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = f"at {config.ray_address}" if config.ray_address else "on this machine"
        raise MachineError(f"No Ray cluster can be used {where} ({_first_line(error)}): {ADVICE}.") from error
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Give SIGTERM back to the command: Ray takes it over when it connects."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _first_line(error: BaseException) -> str:
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)


def batches(items: Iterable[Given], most: int) -> Iterator[list[Given]]:
    """Cut sessions into batches, in their order, each closed at `most` characters of text."""
    batch: list[Given] = []
    size = 0
    for given in items:
        batch.append(given)
        texts = given.session.messages
        size += sum(len(m.content) + sum(len(call.arguments) for call in m.tool_calls) for m in texts)
        if size >= most:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


_jobs: dict[bytes, Job] = {}


def _run(stored: list[Any], version: str, what: str, batch: list[Given]) -> list[Any]:
    """Run a method of the job in a process of the cluster.

    `stored` is a list, so that Ray does not fetch the job for every task.
    """
    if version != __version__:
        raise MachineError(
            f"A node of the Ray cluster has sdft-cli {__version__}, not {version}: install this one on every node."
        )
    import ray

    name = stored[0].binary()
    if name not in _jobs:
        _jobs.clear()
        _jobs[name] = pickle.loads(ray.get(stored[0]))  # written by the process that asks
    return [getattr(_jobs[name], what)(given) for given in batch]


@contextmanager
def on_ray(job: Job) -> Iterator[Each]:
    """Let a cluster do the work: while a result is used, it goes on with the sessions that follow.

    Tasks whose node is lost run again. `IN_FLIGHT` batches per CPU are on their way at a time.

    Raises:
        MissingPackage, UsageError: as `check_cluster`.
        MachineError: no cluster, one without CPUs, one that loses a task again and again, or another version on a node.
    """
    with _connected(job.config) as ray, _told(ray):
        cpus = int(_cpus(ray))
        if cpus < 1:
            raise MachineError("The Ray cluster has no CPU: add a node to it, or use --engine local.")
        stored = ray.put(pickle.dumps(job))
        task = ray.remote(num_cpus=1, max_retries=TRIES_AGAIN)(_run)

        def each(what: str, items: Iterable[Given]) -> Iterator[Any]:
            made = batches(items, BATCH_CHARACTERS)
            for ref in in_order(lambda batch: task.remote([stored], __version__, what, batch), made, IN_FLIGHT * cpus):
                yield from _result(ray, ref)

        yield each


def _cpus(ray: Any) -> float:
    return float(ray.cluster_resources().get("CPU", 0))


def _result(ray: Any, ref: Any) -> list[Any]:
    """Wait for a task, but not for ever: a task that no node can take would never fail."""
    without = 0
    while not ray.wait([ref], timeout=10)[0]:
        without = 0 if _cpus(ray) >= 1 else without + 10
        if without > NO_CPU_SECONDS:
            raise MachineError(
                "All nodes of the Ray cluster with a CPU are gone: start the cluster, and prepare again."
            )
    found: list[Any] = ray.get(ref)
    return found


@contextmanager
def _told(ray: Any) -> Iterator[None]:
    """Make one sentence of what Ray raises; an error of sdft comes out as it was raised on the node."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SdftError):
            raise error.cause from error
        if "failed to import" in str(error) or isinstance(error.cause, ImportError):
            raise MachineError(
                f"A node of the Ray cluster cannot load sdft: install sdft-cli {__version__} on every node."
            ) from error
        raise
    except ray.exceptions.RayError as error:
        raise MachineError(
            f"The Ray cluster lost a task, {TRIES_AGAIN + 1} times ({_first_line(error)}): look at its nodes "
            "(`ray status`), or use --engine local."
        ) from error
