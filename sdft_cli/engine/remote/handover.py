"""The adapter as it is now -> the server: written into a folder that both see, then loaded by its name.

Each adapter has a name and a path of its own. Under one name some versions of vLLM would go on with the keys and values
that they keep of common prefixes, which the adapter before has made.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sdft_cli.engine.models.interrupts import interruptible
from sdft_cli.engine.parallel.processes import ALONE, Processes
from sdft_cli.engine.remote.client import GO_ON, Refused, Server, ServerError
from sdft_cli.errors import MachineError

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
LAST_WORDS = 5.0
"""Seconds in which a server may take note that a run has ended."""


class Handover:
    """The adapter that the server has: its `name`, and its `version`, the updates that were in it.

    Of several processes the first one hands over; all know the name.
    """

    def __init__(
        self, server: Server, folder: Path, save: Callable[[Path], None], every: int, processes: Processes = ALONE
    ) -> None:
        """Take a server that has none yet.

        Args:
            server: the server.
            folder: in which a folder of this run's is made and deleted; whatever else is in it stays. The server sees
                it by the same path.
            save: writes the adapter as it is now into a folder, in peft's format.
            every: hand over where so many updates were made since.
            processes: those that share the run.
        """
        self._run = f"sdft-{uuid.uuid4().hex[:8]}"
        self.folder = folder.absolute() / self._run
        self.server, self.every, self.processes = server, every, processes
        self._save = save
        self.name: str | None = None
        self.version = 0

    def bring(self, made: int) -> str:
        """Return the name of an adapter on the server that is not too old, after `made` updates.

        Raises:
            ServerError: the server does not take it.
            MachineError: it cannot be written.
        """
        if self.name is None or made - self.version >= self.every:
            self.name = self.processes.same(self._bring(made) if self.processes.first else "")
            self.version = made
        return self.name

    def forget(self) -> None:
        """Take the adapter on the server for too old, whatever its version: the next one is brought in any case."""
        self.version = -self.every

    def take_back(self) -> None:
        """Unload the adapter and delete the folder of this run's adapters, whatever the server says."""
        if self.processes.first:
            with suppress(ServerError):
                self._unload(LAST_WORDS)
            shutil.rmtree(self.folder, ignore_errors=True)
        self.name = None

    def _bring(self, made: int) -> str:
        self._unload(self.server.timeout)  # first: a server may have room for one
        name = f"{self._run}-{made}"
        try:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._save(self.folder / name)
        except OSError as error:
            raise MachineError(
                f"The adapter cannot be written to {self.folder} ({error.strerror or error}): make room, or name "
                f"another folder by --set rollout.vllm_folder=FOLDER; {GO_ON}."
            ) from error
        self._load(name)
        return name

    def _load(self, name: str) -> None:
        path = str(self.folder / name)
        try:
            with interruptible():
                self.server.post(LOAD, {"lora_name": name, "lora_path": path})
        except Refused as error:
            if error.status in (404, 405) and name not in error.reason:
                raise ServerError(
                    f"The rollout server {self.server.url} takes no adapters at runtime: start it with --enable-lora "
                    f"and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment; {GO_ON}."
                ) from error
            raise ServerError(
                f"The rollout server {self.server.url} does not load the adapter from {path} ({error.reason}): it has "
                "to see that folder by this path (rollout.vllm_folder), and to serve ranks as large (--max-lora-rank); "
                f"{GO_ON}."
            ) from error

    def _unload(self, timeout: float) -> None:
        if self.name is not None:
            with suppress(Refused), interruptible():  # a server that was started anew has none
                self.server.post(UNLOAD, {"lora_name": self.name}, timeout)
