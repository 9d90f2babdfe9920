from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.engine.doctor import machine  # noqa: E402
from sdft_cli.engine.doctor.machine import conflicts, disk, gpu, installed, memory, packages, traps  # noqa: E402
from sdft_cli.errors import WARNING, MachineError  # noqa: E402


def test_what_is_installed_fits_together() -> None:
    found = installed(machine.PINNING)
    assert conflicts(found) == []
    assert f"torch {torch.__version__}" in packages(found)
    with pytest.raises(MachineError, match=r"peft not installed: pip install 'sdft-cli\[train\]'"):
        packages({name: version for name, version in found.items() if name != "peft"})


def test_a_package_that_asks_for_another_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    own = metadata.requires

    def requires(name: str) -> list[str] | None:
        if name == "peft":
            return ["torch>=99", "numpy", 'absent-package>=1; extra == "all"', 'torch>=99; sys_platform == "none"']
        return own(name)

    monkeypatch.setattr(metadata, "requires", requires)
    (wrong,) = conflicts(installed(machine.PINNING))
    assert wrong.startswith(f"peft {metadata.version('peft')} asks for torch>=99 and {torch.__version__}")
    with pytest.raises(MachineError, match="torch>=99"):
        packages(installed(machine.PINNING))


def test_a_gpu_that_is_missing_or_hidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "GPU_FILES", (str(tmp_path / "absent"),))
    assert "cpu-demo" in gpu(needed=False)
    with pytest.raises(MachineError, match="There is no CUDA GPU"):
        gpu(needed=True)
    monkeypatch.setattr(machine, "GPU_FILES", (str(tmp_path),))
    with pytest.raises(MachineError, match=r"torch .* cannot use it"):
        gpu(needed=False)
    assert [f.level for f in traps({"CUDA_VISIBLE_DEVICES": ""}, has_gpu=True)] == ["fail"]
    assert not list(traps({"CUDA_VISIBLE_DEVICES": ""}, has_gpu=False))
    assert [f.level for f in traps({"OMP_NUM_THREADS": "100000"}, has_gpu=False)] == ["warn"]
    assert not list(traps({"OMP_NUM_THREADS": "1"}, has_gpu=True))


def test_memory_and_disk_that_are_short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert memory(8 * 10**9).startswith("8.0 GB free")
    assert memory(10**9).startswith(WARNING)
    inside = tmp_path / "not" / "yet"
    for free, level in ((10**12, "ok"), (10**10, "warn"), (10**9, "fail")):
        usage = type("Usage", (), {"free": free})
        monkeypatch.setattr(machine.shutil, "disk_usage", {tmp_path: usage}.__getitem__)
        if level == "fail":
            with pytest.raises(MachineError, match="1 GB free"):
                disk({"cache": inside})
        else:
            assert disk({"cache": inside}).startswith(WARNING) == (level == "warn")
