"""Checkpoints of a training run on disk: written whole, verified before they are used.

my-run/checkpoints/
  step-000050/
    adapter.safetensors, optimizer.safetensors, ...   tensors by name, a file per part
    state.json                                        what is no tensor
    manifest.json                                     step; sha256 and size of every other file
  best.json                                           which step is the best so far
  .lock                                               held by the process that writes here
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from sdft_cli.errors import DataError, MachineError, UsageError
from sdft_cli.records.folders import remove_folder, remove_leftovers, replacing_file, replacing_folder, sha256_of

FORMAT, VERSION = "sdft-checkpoint", 1
STEP_NAME = re.compile(r"step-(\d{6,})")
FILE_NAME = re.compile(r"[A-Za-z0-9_-]+\.(safetensors|json)")
Tensors = Mapping[str, Mapping[str, Tensor]]
"""Part of the state (`adapter`, `optimizer`, ...) -> name -> tensor."""

NEXT_STEP = "free space or make the folder writable, then resume the run."


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were all read and match their hashes."""

    path: Path
    step: int
    state: Mapping[str, Any]
    hashes: Mapping[str, str]

    @property
    def parts(self) -> set[str]:
        """Names of the groups of tensors."""
        return {name.removesuffix(".safetensors") for name in self.hashes if name.endswith(".safetensors")}

    def tensors(self, part: str) -> dict[str, Tensor]:
        """Return the tensors of a part by name, on the CPU.

        Raises:
            DataError: the file is not the verified one any more.
        """
        name = f"{part}.safetensors"
        data = _read_bytes(self.path, name)
        if hashlib.sha256(data).hexdigest() != self.hashes[name]:
            raise DataError(
                f"{_label(self.path)} changed after it was verified ({name} does not match its sha256): resume again."
            )
        return load_tensors(data)


class Checkpoints:
    """The folder `checkpoints/` of a run folder, as the one process that writes there."""

    def __init__(self, folder: Path, keep_last: int) -> None:
        """Make the folder if needed, lock it against other processes, and clear what a killed one left.

        Raises:
            UsageError: `checkpoints` is a file or a symbolic link.
            DataError: `best.json` is damaged.
            MachineError: the folder cannot be written, or another process writes there.
        """
        if keep_last < 1:
            raise ValueError("keep_last is at least 1")
        self.folder = folder / "checkpoints"
        self.keep_last = keep_last
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            kind = "a symbolic link" if self.folder.is_symlink() else "a file"
            raise UsageError(f"{self.folder} is {kind}, and checkpoints need a folder of their own: move it away.")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self.folder / ".lock")
            remove_leftovers(self.folder)
        except OSError as error:
            raise MachineError(
                f"Cannot write in {self.folder} ({error.strerror or error}): make it writable, or choose another --out."
            ) from error
        self.best_step = self._read_best()

    def save(self, step: int, tensors: Tensors, state: Mapping[str, Any]) -> Path:
        """Write `checkpoints/step-...`, verify it, and only then delete the ones that are not kept.

        Kept are the newest `keep_last` verified ones, the best one, and this one. An equal one of the same step that
        verifies stays as it is; any other one of that step is replaced.

        Args:
            step: optimiser steps that were done.
            tensors: part -> name -> contiguous tensor; an empty part is kept too.
            state: JSON values; NaN and infinities are allowed, other keys than texts are not.

        Raises:
            MachineError: a write failed; nothing of it is left, and the message names the newest good checkpoint.
            ValueError: the state is not JSON.
        """
        target = self.folder / step_name(step)
        try:
            if not self._holds(target, step, tensors, state):
                with replacing_folder(target) as scratch:
                    manifest = _manifest(step, _write(scratch, _files(tensors, state)))
                    (scratch / "manifest.json").write_bytes(manifest)
                    _read(scratch, step)
            self._delete_others(step)
        except (OSError, DataError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).rstrip(".")
            raise MachineError(
                f"Saving {_label(target)} failed ({reason}) and {self._last_good()}: {NEXT_STEP}"
            ) from error
        return target

    def mark_best(self, step: int) -> None:
        """Remember that a saved step is the best one so far; it is kept until another one is marked.

        Raises:
            ValueError: the step was not saved.
            MachineError: the disk is full or a write fails.
        """
        if step not in self._steps():
            raise ValueError(f"step {step} was not saved")
        path = self.folder / "best.json"
        try:
            with replacing_file(path) as scratch:
                scratch.write_bytes(_best(step))
        except OSError as error:
            raise MachineError(
                f"Writing {_label(path)} failed ({error.strerror or error}) and {self._last_good()}: {NEXT_STEP}"
            ) from error
        self.best_step = step

    def best(self) -> Checkpoint | None:
        """Return the best checkpoint, verified, or None if none was marked. Raises `DataError` if it is damaged."""
        if self.best_step is None:
            return None
        try:
            return _read(self.folder / step_name(self.best_step), self.best_step)
        except DataError as error:
            raise DataError(f"The best checkpoint {error}: put a copy back, or use the newest one.") from error

    def newest(self, notify: Callable[[str], None]) -> Checkpoint | None:
        """Return the newest verified checkpoint, or None if there is none at all.

        Each newer one that is damaged is told to `notify`, with the reason and the step that is used instead.

        Raises:
            DataError: there are checkpoints and all are damaged; a run must not start from zero unnoticed.
        """
        refused: list[str] = []
        for step in reversed(self._steps()):
            try:
                found = _read(self.folder / step_name(step), step)
            except DataError as error:
                refused.append(str(error).rstrip("."))
                continue
            for text in refused:
                notify(f"{text}: using {step_name(step)} instead")
            return found
        if refused:
            raise DataError(f"No checkpoint can be used ({'; '.join(refused)}): put a copy back, or start a new run.")
        return None

    def _steps(self) -> list[int]:
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        matches = map(STEP_NAME.fullmatch, names)
        return sorted(int(m[1]) for m in matches if m and step_name(int(m[1])) == m[0])

    def _holds(self, target: Path, step: int, tensors: Tensors, state: Mapping[str, Any]) -> bool:
        """Say whether an equal, verified checkpoint is there already."""
        if not target.exists():
            return False
        entries = {name: _entry(data) for name, data in _files(tensors, state)}
        return _is_good(target, step) and _read_bytes(target, "manifest.json") == _manifest(step, entries)

    def _delete_others(self, saved: int) -> None:
        """Delete what is not kept; `saved` was verified just now."""
        keep = {saved, self.best_step}
        good = 0
        for step in reversed(self._steps()):
            path = self.folder / step_name(step)
            if good < self.keep_last and (step == saved or _is_good(path, step)):
                good += 1
            elif step not in keep and not path.is_symlink() and path.is_dir():
                remove_folder(path)

    def _last_good(self) -> str:
        good = next((step for step in reversed(self._steps()) if _is_good(self.folder / step_name(step), step)), None)
        return "there is no good one yet" if good is None else f"the last good one is checkpoints/{step_name(good)}"

    def _read_best(self) -> int | None:
        path = self.folder / "best.json"
        if not path.exists():
            return None
        try:
            data = path.read_bytes()
            step = int(json.loads(data)["step"])
            if data != _best(step):
                raise ValueError("it is not what mark_best writes")
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{_label(path)} is damaged ({error}): delete it, and the next best checkpoint is remembered again."
            ) from error
        return step


def read_checkpoint(folder: Path, step: int) -> Checkpoint:
    """Read the checkpoint of a step of a run folder in which another process of the run writes.

    Raises:
        DataError: it is not there, or damaged.
    """
    return _read(folder / "checkpoints" / step_name(step), step)


def step_name(step: int) -> str:
    """Return the name of a step's folder."""
    return f"step-{step:06d}"


def _lock(path: Path) -> Any:
    """Lock a file for this process until it ends or the returned file is closed.

    Raises:
        MachineError: another process holds it.
    """
    file = path.open("a")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise MachineError(f"{path.parent} is in use by another training process: wait until it ends.") from error
    return file


def _label(path: Path) -> str:
    return f"checkpoints/{path.name}"


def _damaged(path: Path, reason: str) -> DataError:
    """Name the fault; the caller adds what is done about it."""
    return DataError(f"{_label(path)} is damaged ({reason})")


def _json(document: Any) -> bytes:
    return (json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def _strict(value: Any) -> Any:
    """Return a value as strict JSON can hold it: a float that is not finite becomes `{"$float": "nan"}`."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(float(value))}
    if isinstance(value, Mapping):
        if "$float" in value or not all(isinstance(key, str) for key in value):
            raise ValueError(f"keys of a checkpoint's state are texts other than $float, not {list(value)}")
        return {key: _strict(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(x) for x in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError(f"a checkpoint's state holds a {type(value).__name__}, which is no JSON value")


def _not_finite(document: dict[str, Any]) -> Any:
    return float(document["$float"]) if "$float" in document else document


def _files(tensors: Tensors, state: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each file, one at a time: they are as large as the optimiser's state."""
    yield "state.json", _json(_strict(state))
    for part in sorted(tensors):
        yield f"{part}.safetensors", save_tensors(dict(tensors[part]))


def _entry(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def _write(folder: Path, files: Iterator[tuple[str, bytes]]) -> dict[str, Any]:
    """Write files; return their sizes and hashes as they were in memory, so that reading back finds a bad write."""
    entries = {}
    for name, data in files:
        (folder / name).write_bytes(data)
        entries[name] = _entry(data)
    return entries


def _best(step: int) -> bytes:
    return _json({"format": "sdft-best-checkpoint", "step": step})


def _manifest(step: int, entries: Mapping[str, Any]) -> bytes:
    return _json({"format": FORMAT, "version": VERSION, "step": step, "files": entries})


def _read_bytes(folder: Path, name: str) -> bytes:
    try:
        return _regular(folder, name).read_bytes()
    except OSError as error:
        raise _damaged(folder, f"{name} cannot be read: {error.strerror or error}") from error


def _regular(folder: Path, name: str) -> Path:
    path = folder / name
    for each in (folder, path):
        if each.is_symlink():
            raise _damaged(folder, f"{each.name} is a symbolic link")
    if not path.is_file():
        raise _damaged(folder, f"{name} is missing")
    return path


def _read_manifest(folder: Path, step: int) -> dict[str, Any]:
    """Read a manifest and check that it is, byte for byte, one that `save` writes for this step."""
    data = _read_bytes(folder, "manifest.json")
    try:
        document = json.loads(data)
        files: dict[str, Any] = document["files"]
        written_by_save = data == _manifest(step, files) and all(map(FILE_NAME.fullmatch, files))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _damaged(folder, "manifest.json is not a manifest") from error
    if not written_by_save or "state.json" not in files:
        raise _damaged(folder, f"manifest.json is not a manifest of format {FORMAT} {VERSION} and step {step}")
    return files


def _read(folder: Path, step: int) -> Checkpoint:
    """Read a checkpoint and compare every file with the manifest.

    Raises:
        DataError: names the folder, the file and what is wrong with it.
    """
    hashes: dict[str, str] = {}
    for name, entry in _read_manifest(folder, step).items():
        path = _regular(folder, name)
        try:
            found: dict[str, Any] = {"sha256": sha256_of(path), "size": path.stat().st_size}
        except OSError as error:
            raise _damaged(folder, f"{name} cannot be read: {error.strerror or error}") from error
        if found["size"] != (entry.get("size") if isinstance(entry, dict) else None):
            raise _damaged(folder, f"{name} does not have the size that its manifest says")
        if found != entry:
            raise _damaged(folder, f"{name} does not match its sha256")
        hashes[name] = found["sha256"]
    state = json.loads(_read_bytes(folder, "state.json"), object_hook=_not_finite)
    return Checkpoint(folder, step, state, hashes)


def _is_good(folder: Path, step: int) -> bool:
    try:
        _read(folder, step)
    except DataError:
        return False
    return True
