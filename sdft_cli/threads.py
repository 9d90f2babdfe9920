"""How torch's threads wait for each other: asleep, so that a second busy process does not cost four times the time.

GNU's OpenMP, which torch brings, lets threads spin at the end of every parallel loop. Where a core is taken by another
process, the thread that should work waits for one that spins. `python -m benchmarks.bench_threads` measures it.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
"""Read once, when OpenMP is loaded: set before torch is imported."""


def wait_asleep(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set `WAITING` for this process and those that it starts, unless the user has set either."""
    if not any(name in environment for name in WAITING):
        environment.update(WAITING)
