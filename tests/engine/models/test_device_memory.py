from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.engine.models.device_memory import available_memory, free_memory, left_in_cgroup  # noqa: E402


def test_linux_says_what_is_available(tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:  100 kB\nMemFree:  10 kB\nMemAvailable:   60 kB\nHugePages_Total:  0\n")
    assert available_memory(file) == 60 * 1024
    file.write_text("MemTotal:  100 kB\n")
    assert available_memory(file) is None
    assert available_memory(tmp_path / "absent") is None


def test_a_containers_limit_counts_without_its_cached_files(tmp_path: Path) -> None:
    assert left_in_cgroup(tmp_path) is None
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert left_in_cgroup(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert left_in_cgroup(tmp_path) == 1000 - 700 + 150
    (tmp_path / "memory.max").write_text("500\n")
    assert left_in_cgroup(tmp_path) == 0


@pytest.mark.skipif(not Path("/proc/meminfo").is_file(), reason="no Linux")
def test_this_machine_has_some_memory_left() -> None:
    free = free_memory(torch.device("cpu"))
    assert free is not None
    assert 0 < free < 1 << 60
