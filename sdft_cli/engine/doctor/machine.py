"""The machine: packages that were resolved and their known traps, GPU, memory, disk. No model is needed."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

import torch

from sdft_cli.engine.doctor.finding import Check, Finding, fail, run_checks, warn
from sdft_cli.engine.models.device_memory import free_memory
from sdft_cli.engine.models.names import cache_folder
from sdft_cli.errors import WARNING, MachineError

STACK = ("torch", "transformers", "peft", "accelerate", "datasets", "unsloth", "unsloth_zoo", "trl", "vllm")
"""Packages whose versions are told; the first four are needed to train."""
NEEDED = STACK[:4]
PINNING = ("sdft-cli", *STACK, "torchvision", "torchaudio", "torchao", "xformers", "triton", "tokenizers")
"""Packages whose own requirements are compared with what is installed."""
GPU_FILES = ("/dev/nvidia0", "/proc/driver/nvidia/version")
LEAST_MEMORY, LEAST_DISK, LITTLE_DISK = 4e9, 2e9, 20e9
"""Bytes: under the first two nothing runs well, under the last one a checkpoint of a large model does not fit."""


def examine_machine(needs_gpu: bool) -> Iterator[Finding]:
    """Yield a finding for each property of this machine.

    Args:
        needs_gpu: a run on a GPU is intended; that there is none is a failure then.
    """
    checks: dict[str, Check] = {
        "packages": lambda: packages(installed(PINNING)),
        "GPU": lambda: gpu(needs_gpu),
        "memory": lambda: memory(free_memory(torch.device("cpu"))),
        "disk": lambda: disk({"here": Path.cwd(), "cache": cache_folder()}),
    }
    yield from run_checks(checks)
    yield from traps(os.environ, has_gpu_files())


def installed(names: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def packages(found: Mapping[str, str]) -> str:
    """Name what is installed.

    Raises:
        MachineError: a package is missing, or another one asks for another version of it.
    """
    missing = [name for name in NEEDED if name not in found]
    if missing:
        raise MachineError(f"{', '.join(missing)} not installed: pip install 'sdft-cli[train]'")
    wrong = conflicts(found)
    if wrong:
        raise MachineError(f"{'; '.join(wrong)}: install the versions that are asked for.")
    told = [f"{name} {found[name]}" for name in STACK if name in found]
    return f"Python {platform.python_version()}, {', '.join(told)}"


def conflicts(found: Mapping[str, str]) -> list[str]:
    """Say which installed package asks for another version of one that is installed."""
    from packaging.requirements import Requirement

    wrong = []
    for name in found:
        for line in metadata.requires(name) or ():
            wanted = Requirement(line)
            if wanted.marker is not None and not wanted.marker.evaluate(
                {"extra": "train" if name == "sdft-cli" else ""}
            ):
                continue
            version = installed((wanted.name,)).get(wanted.name)
            if version is not None and not wanted.specifier.contains(version, prereleases=True):
                wrong.append(
                    f"{name} {found[name]} asks for {wanted.name}{wanted.specifier} and {version} is installed"
                )
    return wrong


def gpu(needed: bool) -> str:
    """Describe the GPU.

    Raises:
        MachineError: there is one that torch cannot use, or none and one is needed.
    """
    if torch.cuda.is_available():
        free, whole = torch.cuda.mem_get_info()
        card = torch.cuda.get_device_properties(0)
        text = (
            f"{card.name}, capability {card.major}.{card.minor}, {free / 1e9:.1f} of {whole / 1e9:.1f} GB free, "
            f"CUDA {torch.version.cuda}"
        )
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            return f"{WARNING}{text}; it has no bf16, in which models are trained: use another card, or dtype=float32"
        return text
    if has_gpu_files():
        raise MachineError(
            f"There is an NVIDIA GPU and torch {torch.__version__} cannot use it: install a build of torch with CUDA, "
            "not older than the driver."
        )
    if needed:
        raise MachineError("There is no CUDA GPU: leave --gpu out, or use another machine.")
    return "none: profiles for the CPU only (--profile cpu-demo)"


def has_gpu_files() -> bool:
    """Say whether the system has an NVIDIA GPU, whatever torch thinks."""
    return any(Path(file).exists() for file in GPU_FILES)


def memory(free: int | None) -> str:
    """Say how much memory is free."""
    if free is None:
        return "the system does not tell how much is free"
    text = f"{free / 1e9:.1f} GB free, {os.cpu_count()} cores"
    return text if free >= LEAST_MEMORY else f"{WARNING}{text}: close other programs, or use a smaller model"


def disk(folders: Mapping[str, Path]) -> str:
    """Say how much room folders have; one that does not exist yet has that of its parent.

    Raises:
        MachineError: there is hardly any.
    """
    free = {name: shutil.disk_usage(_existing(folder)).free for name, folder in folders.items()}
    text = ", ".join(f"{size / 1e9:.0f} GB free ({name})" for name, size in free.items())
    if min(free.values()) < LEAST_DISK:
        raise MachineError(f"{text}: free some, or work on another disk (SDFT_CACHE for the cache).")
    if min(free.values()) < LITTLE_DISK:
        return f"{WARNING}{text}: too little for a merged model of 9B and its base"
    return text


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def traps(environment: Mapping[str, str], has_gpu: bool) -> Iterator[Finding]:
    """Yield what is known to go wrong with these variables; nothing where nothing does."""
    if has_gpu and environment.get("CUDA_VISIBLE_DEVICES") == "":
        yield fail("environment", "CUDA_VISIBLE_DEVICES is empty and hides every GPU: unset it.")
    threads = environment.get("OMP_NUM_THREADS", "")
    cores = os.cpu_count() or 1
    if threads.isdigit() and int(threads) > cores:
        yield warn(
            "environment", f"OMP_NUM_THREADS is {threads} on {cores} cores, threads wait for each other: lower it."
        )
