"""`sdft-run.json`: the settings of a whole run, and of each stage what it was made of, what it left and when.

It is written anew, in one rename, before and after each stage, so a process that is killed leaves a stage `running`.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sdft_cli import __version__
from sdft_cli.errors import DataError
from sdft_cli.places import WHOLE_RUN
from sdft_cli.records.folders import sha256_of

FORMAT = "sdft-whole-run"
_PACKAGES = ("torch", "transformers", "peft", "accelerate", "unsloth")


def digest(document: Any) -> str:
    """Return the SHA-256 of a JSON-able document."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    found = {"sdft": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


class RunManifest:
    """The manifest in a folder; every change is on the disk before a method returns.

    A stage's `status` is running, finished, skipped, interrupted or stopped: then `why` says it. `inputs` are hashes of
    what it was made of, `outputs` those of the files that it left.
    """

    def __init__(self, folder: Path, document: dict[str, Any]) -> None:
        self.folder = folder
        self.document = document

    @classmethod
    def new(cls, folder: Path, given: Mapping[str, Any] | None) -> RunManifest:
        """Return the manifest of a run that begins. `given`: what the command line said; None: settings are fixed."""
        return cls(folder, {"format": FORMAT, "started": _now(), "given": given, "settings": {}, "stages": []})

    @classmethod
    def read(cls, folder: Path) -> RunManifest:
        """Read a manifest; raises `DataError` if it is missing, damaged or something else."""
        from sdft_cli.records.json_files import read_json

        document = read_json(folder / WHOLE_RUN, "start again with --overwrite")
        if document.get("format") != FORMAT or not isinstance(document.get("stages"), list):
            raise DataError(f"{folder / WHOLE_RUN} was not written by `sdft run`: choose another --out.")
        return cls(folder, document)

    def take(self, settings: Mapping[str, Any]) -> None:
        """Note the settings of this start, and the versions of what runs it."""
        self.document |= {"settings": settings, "versions": _versions()}
        self._save()

    def stage(self, name: str) -> dict[str, Any] | None:
        """Return what is known of a stage."""
        found: dict[str, Any] | None = next((s for s in self.document["stages"] if s["name"] == name), None)
        return found

    def is_done(self, name: str, inputs: Mapping[str, str]) -> bool:
        """Say whether a stage was finished or skipped with these inputs, and all that it left is there unchanged."""
        found = self.stage(name)
        if found is None or found["status"] not in ("finished", "skipped") or found["inputs"] != inputs:
            return False
        files = [(self.folder / path, sha256) for path, sha256 in found["outputs"].items()]
        return all(path.is_file() and sha256_of(path) == sha256 for path, sha256 in files)

    def outputs(self, name: str) -> dict[str, str]:
        """Return the hashes of what a stage left, as the inputs of another."""
        return dict((self.stage(name) or {}).get("outputs", {}))

    def begin(self, name: str, inputs: Mapping[str, str]) -> None:
        entry = {"name": name, "status": "running", "started": _now(), "ended": None, "inputs": inputs, "outputs": {}}
        stages = [stage for stage in self.document["stages"] if stage["name"] != name]
        self.document["stages"] = [*stages, entry]
        self._save()

    def end(self, name: str, outputs: Sequence[Path], skipped: str | None = None) -> None:
        """Note that a stage is over. `skipped`: why nothing was done."""
        hashes = {path.relative_to(self.folder).as_posix(): sha256_of(path) for path in outputs}
        told = {"status": "skipped", "why": skipped} if skipped else {"status": "finished"}
        self._change(name, {**told, "outputs": hashes})

    def stop(self, name: str, error: BaseException) -> None:
        """Note what ended a stage before its end."""
        interrupted = isinstance(error, KeyboardInterrupt)
        why = {"why": str(error) or type(error).__name__, "exit_code": getattr(error, "exit_code", 1)}
        self._change(name, {"status": "interrupted"} if interrupted else {"status": "stopped", **why})

    def _change(self, name: str, change: Mapping[str, Any]) -> None:
        entry = self.stage(name)
        assert entry is not None
        entry |= {**change, "ended": _now()}
        self._save()

    def _save(self) -> None:
        from sdft_cli.records.json_files import write_json

        write_json(self.folder / WHOLE_RUN, self.document)
