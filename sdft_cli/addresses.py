"""Sources and targets that are addresses (`s3://bucket/sessions`, `hf://datasets/...`): whatever fsspec opens."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdft_cli.errors import MachineError, SdftError, UsageError

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://.")
_OF_FSSPEC = ("s3fs", "gcsfs")
"""Packages that work with the fsspec of the same version only."""


def is_address(name: str) -> bool:
    """Say whether a name is an address of fsspec's, not a path."""
    return bool(_ADDRESS.match(name))


@contextmanager
def _filesystem(address: str) -> Iterator[tuple[Any, str]]:
    """Yield the filesystem behind an address and the path on it; what goes wrong there is one sentence.

    Raises:
        UsageError: fsspec knows no such kind of address.
        MachineError: its package is not installed, or the filesystem raises anything.
    """
    import fsspec
    from fsspec.core import url_to_fs

    kind = address.partition("://")[0]
    if kind.split("::")[0] not in fsspec.available_protocols():
        raise UsageError(f"{address}: fsspec opens no {kind}:// addresses: check the address, or give a path.")
    try:
        filesystem, path = url_to_fs(address, **({"auto_mkdir": True} if kind in ("file", "local") else {}))
        yield filesystem, path.rstrip("/")
    except SdftError:
        raise
    except ImportError as error:
        raise MachineError(f"{address} needs a package that is not installed: {_install(kind)}") from error
    except Exception as error:  # each filesystem has classes of its own, of the client that it wraps
        said = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        raise MachineError(
            f"{address} failed ({type(error).__name__}: {said}): check the address, the network and your credentials."
        ) from error


def _install(kind: str) -> str:
    import fsspec
    from fsspec.registry import known_implementations

    module = known_implementations[kind]["class"].split(".")[0]
    return f"pip install {module}" + (f"=={fsspec.__version__}" if module in _OF_FSSPEC else "")


def fetch(
    address: str, folder: Path, wanted: Callable[[Path], bool], progress: Callable[[str, int, int], None]
) -> Path:
    """Copy a file, or a folder and all below it, into a local folder; return its path there.

    Hidden files are left out, and of those that are not `wanted` there is an empty one. Raises as `_filesystem`, and
    `UsageError` if there is nothing at the address.
    """
    with _filesystem(address) as (filesystem, path):
        top = folder / (path.rsplit("/", 1)[-1] or "sessions")
        if filesystem.isfile(path):
            filesystem.get_file(path, str(top))
            return top
        names = sorted(filesystem.find(path))
        if not names:
            raise UsageError(f"There is nothing at {address}: check the address.")
        for number, name in enumerate(names):
            progress("Fetching", number, len(names))
            parts = name[len(path) :].strip("/").split("/")
            if any(part.startswith(".") for part in parts):  # .. too
                continue
            copy = top.joinpath(*parts)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if wanted(copy):
                filesystem.get_file(name, str(copy))
            else:
                copy.touch()
        progress("Fetching", len(names), len(names))
    return top


def check_target(address: str, marker: str, overwrite: bool) -> None:
    """Refuse an address where something is, unless it is what this command writes (it holds `marker`), to overwrite.

    Raises as `_filesystem`, and `UsageError`.
    """
    with _filesystem(address) as (filesystem, path):
        if not filesystem.exists(path) or not filesystem.find(path):
            return
        if not overwrite:
            raise UsageError(f"{address} already exists: choose another --out, or add --overwrite to replace it.")
        if not filesystem.exists(f"{path}/{marker}"):
            raise UsageError(
                f"{address} is not what this command writes (it holds no {marker}), so --overwrite does not replace "
                "it: choose another --out."
            )


def put(folder: Path, address: str, marker: str) -> None:
    """Copy the files of a local folder to an address, `marker` last: whoever finds it there finds all of the others.

    A `marker` that is there goes first, and so do files of before that are no more. Folders below the address stay as
    they are. Raises as `_filesystem`.
    """
    with _filesystem(address) as (filesystem, path):
        found = filesystem.find(path, maxdepth=1) if filesystem.exists(path) else []
        before = {name.rsplit("/", 1)[-1]: name for name in found}
        names = sorted((file.name for file in folder.iterdir()), key=lambda name: (name == marker, name))
        for name in sorted(before, key=lambda name: (name != marker, name)):
            if name == marker or name not in names:
                filesystem.rm_file(before[name])
        for name in names:
            filesystem.put_file(str(folder / name), f"{path}/{name}")
