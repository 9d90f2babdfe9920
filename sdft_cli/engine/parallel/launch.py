"""Whether this process is one of several that `torchrun` or `accelerate launch` started. Nothing heavy is imported."""

from __future__ import annotations

import os

from sdft_cli.errors import UsageError


def launched() -> tuple[int, int]:
    """Return rank and number of processes that `torchrun` or `accelerate launch` gave this process; (0, 1) alone.

    Raises:
        UsageError: a variable of the launcher's holds what no launcher would write.
    """
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if not all(os.environ.get(name) for name in names) or from_launcher("WORLD_SIZE") < 2:
        return 0, 1
    rank, count = from_launcher("RANK"), from_launcher("WORLD_SIZE")
    if rank >= count:
        raise UsageError(f"RANK is {rank} in the environment and WORLD_SIZE {count}: ranks are counted from 0.")
    return rank, count


def from_launcher(name: str, default: int = 0) -> int:
    """Return a number that the launcher left in the environment.

    Raises:
        UsageError: it is none.
    """
    text = os.environ.get(name) or str(default)
    if not (text.isascii() and text.isdigit()):
        raise UsageError(
            f"{name} is {text!r} in the environment, and `torchrun` and `accelerate launch` write a number there: "
            "start with one of them, or unset it."
        )
    return int(text)
