"""`python -m tests.cli.kills FOLDER ARGUMENTS...`: a command in one process after another, each killed by SIGKILL.

Each process is a fork that kills itself before its n-th rename, a little later than the one before it; from the second
on, `--resume` is added. Writes how many there were to `lives`, and exits with the code of the one that was not killed.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import runpy
import signal
import sys
from pathlib import Path

from tests.fork_server import LIBRARIES

FIRST, LATER, MOST = 3, 1, 40


def killed_before(rename: int) -> None:
    """Kill this process before its n-th rename."""
    count = 0

    def hook(name: str, arguments: object) -> None:
        nonlocal count
        if name == "os.rename":
            count += 1
            if count == rename:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def main() -> int:
    folder, arguments = Path(sys.argv[1]), sys.argv[2:]
    os.chdir(folder)
    for library in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    gc.freeze()  # no fork looks through what the libraries made
    for life in range(MOST):
        child = os.fork()
        if not child:
            killed_before(FIRST + LATER * life)
            sys.argv = ["sdft", *arguments, *(["--resume"] if life else [])]
            runpy.run_module("sdft_cli", run_name="__main__", alter_sys=True)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            (folder / "lives").write_text(str(life + 1))
            return os.waitstatus_to_exitcode(status)
    return 99


if __name__ == "__main__":
    sys.exit(main())
