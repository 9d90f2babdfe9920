"""`sdft train --profile-steps N`: where the time of N steps went, and how much of the machine they used."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sdft_cli.config import with_settings
from sdft_cli.engine.plan.model_shape import shape_of
from sdft_cli.engine.plan.work import step_operations
from sdft_cli.engine.train.sdft_step import Trainer, Trajectories
from sdft_cli.records.json_files import write_json

CEILING_SIZES, CEILING_RUNS, CEILING_SECONDS = (256, 512, 1024, 2048), 5, 0.1


def matrix_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations per second of the best of some square matrix products, 2 n^3 operations each.

    A product that takes more than `CEILING_SECONDS` is the largest: a processor that only emulates 16 bits would take
    minutes for the next one.
    """
    best = 0.0
    for size in CEILING_SIZES:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        seconds = min(_product_seconds(a, b) for _ in range(CEILING_RUNS + 1))  # the first one warms up
        best = max(best, 2 * size**3 / seconds)
        if seconds > CEILING_SECONDS:
            break
    return best


def _product_seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    if a.device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    torch.mm(a, b)
    if a.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


class Profile:
    """Adds up the steps of a run and writes `profile.json` after the last of them.

    `done` is the finished document: by phase `seconds` and `operations` of all steps, and `utilisation`, operations
    per second as a share of the measured ceiling; the same for whole steps; `independent_operations`, what the steps
    would have taken without sharing, at the same rollouts.
    """

    def __init__(self, trainer: Trainer, steps: int, folder: Path) -> None:
        self.trainer, self.steps, self.folder = trainer, steps, folder
        self.shape = shape_of(trainer.backend.base.config, trainer.config)
        with torch.random.fork_rng():
            self.ceiling = matrix_ceiling(trainer.backend.device, getattr(torch, trainer.config.dtype))
        self.seconds: dict[str, float] = defaultdict(float)
        self.operations: dict[str, float] = defaultdict(float)
        self.independent = 0.0
        self.numbers: list[int] = []
        self.done: dict[str, Any] | None = None
        (folder / "profile.json").unlink(missing_ok=True)  # of an earlier part of the run

    def add(self, metrics: Mapping[str, Any], taken: Trajectories) -> None:
        """Count a step that ran; nothing happens after the last one."""
        if self.done is not None:
            return
        for name, seconds in metrics["phase_seconds"].items():
            self.seconds[name] += seconds
        for name, operations in self._operations(taken).items():
            self.operations[name] += operations
        backend, own = self.trainer.backend, self.trainer.backend.sharing
        backend.sharing = "none"
        # A pass of its own for each turn, without padding.
        self.independent += sum(self._operations(taken, max_tokens=1).values())
        backend.sharing = own
        self.numbers.append(metrics["step"])
        if len(self.numbers) == self.steps:
            self.done = self._document()
            write_json(self.folder / "profile.json", self.done)

    def _operations(self, taken: Trajectories, max_tokens: int | None = None) -> dict[str, float]:
        config = with_settings(self.trainer.config, {"optim.max_tokens_per_pass": max_tokens})
        return step_operations(
            self.trainer.backend,
            self.shape,
            config,
            [e.student for e in taken.examples],
            [e.teacher for e in taken.examples],
            [r.ids for r in taken.rollouts],
            taken.on_policy,
            self.trainer.sampling == "merged",
        )

    def _document(self) -> dict[str, Any]:
        whole, operations = sum(self.seconds.values()), sum(self.operations.values())
        phases = {
            name: {
                "seconds": seconds,
                "share": seconds / whole,
                "operations": self.operations.get(name, 0.0),
                "utilisation": self.operations.get(name, 0.0) / seconds / self.ceiling if seconds else 0.0,
            }
            for name, seconds in sorted(self.seconds.items(), key=lambda item: -item[1])
        }
        return {
            "steps": self.numbers,
            "sharing": self.trainer.backend.sharing,
            "dtype": self.trainer.config.dtype,
            "threads": torch.get_num_threads(),
            "ceiling_operations_per_second": self.ceiling,
            "phases": phases,
            "seconds": whole,
            "operations": operations,
            "utilisation": operations / whole / self.ceiling,
            "independent_operations": self.independent,
        }
