"""What side-by-side measurements share: fresh processes that take turns, memory over the loaded model, summaries."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

Job = dict[str, Any]
"""Everything that one child process measures, as JSON."""


def run_child(module: str, job: Job) -> dict[str, Any]:
    """Run `python -m MODULE --child JOB` in a process of its own; return the JSON object that it prints last.

    `job["threads"]` is the number of its threads.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, "--child", json.dumps(job)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": str(job["threads"]),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        },
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def take_turns(module: str, jobs: Mapping[str, Job], repetitions: int) -> dict[str, list[dict[str, Any]]]:
    """Run every side once per repetition, in turns, so that a slow minute of the machine hits all of them.

    The order is reversed from one repetition to the next: no side always runs first.
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
    for number in range(repetitions):
        names = list(jobs) if number % 2 == 0 else list(reversed(jobs))
        for name in names:
            found[name].append(run_child(module, jobs[name]))
            seconds = found[name][-1]["seconds"]
            print(f"  repetition {number + 1} of {repetitions}, {name}: {seconds:.2f} s", file=sys.stderr, flush=True)
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return smallest, median and largest value."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


class Watch:
    """Seconds and memory of a block: `seconds`, and `peak_MB`, the most memory beyond `base_MB`, sampled."""

    def __init__(self) -> None:
        import psutil

        self._process = psutil.Process()
        self.base_MB = self._resident()
        self.peak_MB = 0.0
        self.seconds = 0.0

    def _resident(self) -> float:
        return float(self._process.memory_info().rss) / 1e6

    def rebase(self) -> None:
        """Take the memory of now as the base."""
        self.base_MB = self._resident()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.start()
        try:
            yield
        finally:
            self.stop()

    def start(self) -> None:
        """Start clock and sampler."""
        self._ended = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()
        self._started = time.perf_counter()

    def stop(self) -> None:
        """Stop both."""
        self.seconds = time.perf_counter() - self._started
        self._ended.set()
        self._sampler.join()

    def _sample(self) -> None:
        while not self._ended.wait(0.01):
            self.peak_MB = max(self.peak_MB, self._resident() - self.base_MB)


def child_or_main(arguments: Sequence[str], child: Callable[[Job], dict[str, Any]]) -> bool:
    """Where this process is a child, run its job, print the result, and return True."""
    if list(arguments[:1]) != ["--child"]:
        return False
    job: Job = json.loads(arguments[1])
    import torch

    torch.set_num_threads(job["threads"])
    print(json.dumps(child(job)))
    return True
