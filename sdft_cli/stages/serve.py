"""A merged checkpoint -> the command that serves it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sdft_cli.notices import say

if TYPE_CHECKING:
    from sdft_cli.chat.serving import Service
    from sdft_cli.stages.chat import Subject


def service_for(subject: Subject, engine: str, host: str, port: int) -> Service:
    """Return the command that serves a merged checkpoint or a model.

    Raises:
        UsageError: the run has no merged checkpoint, or no such engine is known.
    """
    from sdft_cli.chat.serving import VLLM, service_of
    from sdft_cli.engine.models.names import local_folder
    from sdft_cli.errors import WARNING, UsageError
    from sdft_cli.stages.chat import open_chat_prompts

    if subject.adapter is not None:
        path = subject.run.path if subject.run else subject.adapter
        base = "" if subject.run else " --base MODEL"
        raise UsageError(f"{path} has no merged checkpoint to serve: run `sdft merge {path} --bf16{base}` first.")
    folder = local_folder(subject.model)
    found = open_chat_prompts(subject).syntax if engine == VLLM else None
    if found is not None and found.syntax is None:
        say(f"{WARNING}calls will not be parsed: {found.reason}")
    return service_of(engine, folder, host, port, found.syntax.name if found and found.syntax else None)


def start(service: Service) -> None:
    """Run a server until it ends or is interrupted.

    Raises:
        MachineError: it is not installed.
        SdftError: it ended with an error.
    """
    from sdft_cli.chat.serving import NEEDS
    from sdft_cli.errors import MachineError, SdftError

    program = shutil.which(
        service.command[0], path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    )
    packages, advice = NEEDS[service.engine]
    if program is None or any(importlib.util.find_spec(name) is None for name in packages):
        raise MachineError(f"`{service.command[0]} serve` cannot start here: {advice}, then run the command above.")
    code = subprocess.run([program, *service.command[1:]], check=False).returncode
    if code not in (0, 130, -2, -15):
        raise SdftError(f"The server ended with exit code {code}: its own messages above say why.")
