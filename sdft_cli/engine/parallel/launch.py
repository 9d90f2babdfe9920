"""Whether this process is one of several that `torchrun` or `accelerate launch` started. Nothing heavy is imported."""

from __future__ import annotations

import os


def launched() -> tuple[int, int]:
    """Return rank and number of processes that `torchrun` or `accelerate launch` gave this process; (0, 1) alone."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if not all(os.environ.get(name) for name in names) or int(os.environ["WORLD_SIZE"]) < 2:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
