"""How much memory is free now."""

from __future__ import annotations

from pathlib import Path

import torch

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
