"""How torch's threads wait for each other: they spin only briefly, so that a second busy process costs less.

GNU's OpenMP, which torch brings, lets threads spin at the end of every parallel loop. Where a core is taken by another
process, the thread that should work waits for one that spins, and a training step takes three times as long. To sleep
at once costs a fifth on an idle machine: `python -m benchmarks.bench_threads` prints both (docs/benchmarks.md).
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
"""Read once, when OpenMP is loaded: set before torch is imported."""


def limit_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set `WAITING` for this process and those that it starts, unless the user has set either."""
    if not any(name in environment for name in WAITING):
        environment.update(WAITING)
