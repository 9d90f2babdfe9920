"""Whole folders and files or nothing: write aside, sync, rename."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sdft_cli.errors import MachineError, UsageError


@contextmanager
def _failing_as(what: str, advice: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MachineError(f"{what} ({error.strerror or error}): {advice}.") from error


def check_output_folder(target: Path, marker: str, overwrite: bool) -> None:
    """Refuse a folder that exists (unless `overwrite`) or whose parent cannot be written.

    `marker` is the file that every folder of this kind holds: `overwrite` replaces no other folder.

    Raises:
        UsageError: the folder exists and `overwrite` is false, or it is of another kind, or the path is a file.
        MachineError: the parent folder cannot be created or written.
    """
    if target.is_file():
        raise UsageError(f"{target} is a file: give --out a folder that does not exist yet.")
    if target.exists() and any(target.iterdir()):
        if not overwrite:
            raise UsageError(f"{target} already exists: choose another --out, or add --overwrite to replace it.")
        if not (target / marker).is_file():
            raise UsageError(
                f"{target} is not what this command writes (it holds no {marker}), so --overwrite does not replace it: "
                "choose another --out."
            )
    parent = target.absolute().parent
    with _failing_as(f"Cannot write in {parent}", "choose another --out"):
        parent.mkdir(parents=True, exist_ok=True)
        probe = _hidden(target, "probe")
        probe.mkdir()
        probe.rmdir()


def _sync_path(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _hidden(target: Path, kind: str) -> Path:
    return target.absolute().parent / f".{target.name}.{kind}-{uuid.uuid4().hex[:8]}"


LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<kind>partial|probe|old|deleted)-[0-9a-f]{8}")
"""Names that `_hidden` gives: being written, being tried, moved aside for a replacement, being deleted."""


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def remove_folder(target: Path) -> None:
    """Delete a folder; a reader sees all of it or nothing. Raises OSError."""
    hidden = _hidden(target, "deleted")
    target.rename(hidden)
    shutil.rmtree(hidden)


def remove_leftovers(parent: Path) -> None:
    """Clear what a killed process left in a folder that no other process writes to. Raises OSError.

    A folder that was moved aside for a replacement that never came is put back; all else is deleted.
    """
    for path in sorted(parent.iterdir()):
        match = LEFTOVER.fullmatch(path.name)
        if match and match["kind"] == "old" and not os.path.lexists(parent / match["name"]):
            path.rename(parent / match["name"])
        elif match:
            _delete(path)


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """Yield a scratch folder beside `target`; on success it becomes `target` in one rename, else it is removed.

    What `target` held before is moved aside first and deleted last, so a kill at any moment loses neither (see
    `remove_leftovers`). Raises OSError.
    """
    scratch = _hidden(target, "partial")
    scratch.mkdir()
    try:
        yield scratch
        for path in [*scratch.rglob("*"), scratch]:
            _sync_path(path)
        old = _move_aside(target)
        try:
            scratch.rename(target)
        except OSError:
            if old:
                old.rename(target)
            raise
        _sync_path(scratch.parent)
        if old:
            _delete(old)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _move_aside(target: Path) -> Path | None:
    if not os.path.lexists(target):
        return None
    old = _hidden(target, "old")
    target.rename(old)
    return old


@contextmanager
def new_folder(target: Path, marker: str, overwrite: bool = False) -> Iterator[Path]:
    """Yield a scratch folder beside `target`; on success it becomes `target` in one rename, else it is removed.

    A reader never sees a half-written folder. Arguments and errors are those of `check_output_folder`; `MachineError`
    too when the disk is full or a write fails.
    """
    check_output_folder(target, marker, overwrite)
    failed = _failing_as(f"Writing {target} failed", "free space or choose another --out")
    with failed, replacing_folder(target.absolute()) as scratch:
        yield scratch


@contextmanager
def replacing_file(target: Path) -> Iterator[Path]:
    """Yield a scratch path beside `target`; on success it becomes `target` in one rename, else it is removed.

    Raises OSError.
    """
    scratch = _hidden(target, "partial")
    try:
        scratch.touch()
        yield scratch
        _sync_path(scratch)
        scratch.replace(target)
        _sync_path(scratch.parent)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def new_file(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a scratch path beside `target`; on success it becomes `target` in one rename, else it is removed.

    Raises:
        UsageError: the file exists and `overwrite` is false, or the path is a folder.
        MachineError: the folder cannot be written, the disk is full, or a write fails.
    """
    if target.is_dir():
        raise UsageError(f"{target} is a folder: name a file in it.")
    if target.exists() and not overwrite:
        raise UsageError(f"{target} already exists: choose another name, or add --overwrite to replace it.")
    with _failing_as(f"Writing {target} failed", "free space or choose another name"):
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        with replacing_file(target) as scratch:
            yield scratch


def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(target: Path, text: str, overwrite: bool = False) -> None:
    """Write a text file as UTF-8, in one rename; raises as `new_file`."""
    with new_file(target, overwrite) as scratch:
        scratch.write_text(text, encoding="utf-8")


def writable_file(path: Path) -> Path:
    """Return `path` after making its folder; raises `MachineError` where it cannot be written."""
    with _failing_as(f"Cannot write {path}", "choose another --out"):
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        with path.open("a"):
            pass
        if is_new:  # what it is for may fail
            path.unlink()
    return path
