"""How much memory a device has free, and what to lower when there was not enough."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from sdft_cli.config import TrainConfig
from sdft_cli.errors import OutOfMemory

MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that can still be allocated on a device, or None where the system does not tell (no Linux)."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    known = [size for size in (available_memory(), left_in_cgroup()) if size is not None]
    return min(known) if known else None


def available_memory(meminfo: Path = MEMINFO) -> int | None:
    """Return what Linux can give without swapping, in bytes: `MemAvailable`."""
    if not meminfo.is_file():
        return None
    fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines() if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None


def left_in_cgroup(folder: Path = CGROUP) -> int | None:
    """Return the bytes that a container's limit (cgroup v2) leaves; None if there is no limit.

    Cached files count as used there, and are given back when memory is asked for.
    """
    limit, used, details = folder / "memory.max", folder / "memory.current", folder / "memory.stat"
    if not (limit.is_file() and used.is_file() and details.is_file()):
        return None
    text = limit.read_text(encoding="ascii").strip()
    if text == "max":
        return None
    stat = dict(line.split() for line in details.read_text(encoding="ascii").splitlines())
    return max(0, int(text) - int(used.read_text(encoding="ascii")) + int(stat.get("inactive_file", 0)))


CPU_ALLOCATION_FAILED = "can't allocate memory"


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error is torch's for memory that cannot be had, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and CPU_ALLOCATION_FAILED in str(error)
    )


def what_to_lower(config: TrainConfig) -> str:
    """Name the settings that lower the peak, the one that costs least first."""
    optim = config.optim
    advice = []
    if optim.turns_per_step * config.rollout.per_record > 1:
        advice.append(f"optim.max_tokens_per_pass (now {optim.max_tokens_per_pass})")
    if config.prefix_sharing in ("auto", "depth_first") and config.segment_tokens >= 512:
        advice.append(f"segment_tokens (now {config.segment_tokens})")
    if not config.gradient_checkpointing:
        advice.append("gradient_checkpointing to true")
    if config.rollout.weights != "adapter":
        advice.append("rollout.weights to adapter")
    advice.append(f"rollout.max_tokens_per_pass (now {config.rollout.max_tokens_per_pass})")
    advice.append(f"max_prompt_tokens (now {config.max_prompt_tokens}; prepare again with the same cap)")
    return "lower or set, in this order, " + ", ".join(advice)


@contextmanager
def out_of_memory_explained(config: TrainConfig, where: str) -> Iterator[None]:
    """Turn an allocation failure into an `OutOfMemory` of one sentence; other errors pass."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"Out of memory in {where}: {what_to_lower(config)}.") from error
