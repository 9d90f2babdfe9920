"""`python -m sdft_cli` in a process forked from one that has imported the libraries, which take seconds of a command.

Each command is a process of its own, as a user's: arguments, working folder, output and exit code are real. Nothing of
sdft itself is imported before the fork. What depends on the environment at import needs a new process.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

LIBRARIES = (
    *("typer._adapters", "rich.live", "polars", "datasets", "torch", "transformers", "accelerate", "peft", "sklearn"),
    *("jsonschema_rs", "msgspec", "transformers.models.llama.modeling_llama"),
)
LONGEST = 600
"""Seconds of a command."""
READ_LATE = ("COLUMNS", "NO_COLOR", "HF_TOKEN", "SDFT_", "PYTEST_")
"""Beginnings of variables that nothing here reads when it is imported."""
SET_BY_LIBRARIES = ("_RJEM_", "KMP_", "RAY_", "PYTHONBREAKPOINT", "TORCHINDUCTOR_", "TRL_", "UNSLOTH_", "HF_XET_")
"""Of those that libraries set for themselves in the tests' own process, when they are imported there."""


class ForkServer:
    """Starts commands one after the other."""

    def __init__(self, **environment: str) -> None:
        """Take variables that libraries read when they are imported, on top of this process's own."""
        self.environment = {**os.environ, **environment}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fork_server"],
            cwd=Path(__file__).resolve().parent.parent,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def serves(self, environment: dict[str, str]) -> bool:
        """Say whether the libraries would have read the same from an environment."""
        names = {*self.environment, *environment}
        changed = {name for name in names if self.environment.get(name) != environment.get(name)}
        return all(name.startswith(READ_LATE + SET_BY_LIBRARIES) for name in changed)

    def run(self, arguments: list[str], cwd: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Run `python -m sdft_cli` with these arguments and wait for its end; an sdft_cli in `cwd` goes first."""
        assert self.process.stdin
        assert self.process.stdout
        with tempfile.TemporaryDirectory(prefix="sdft-fork-") as folder:
            files = {name: str(Path(folder) / name) for name in ("stdout", "stderr")}
            request = {"arguments": arguments, "cwd": str(cwd), "environment": environment, **files}
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            code = int(self.process.stdout.readline())
            out, err = (Path(file).read_text(encoding="utf-8") for file in files.values())
        return subprocess.CompletedProcess(["sdft", *arguments], code, out, err)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def serve() -> dict[str, Any] | None:
    """Fork for each request on standard input; return the request in the fork, None at the end of the input."""
    for library in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    gc.freeze()  # no fork looks through what the libraries made
    for line in sys.stdin:
        child = os.fork()
        if not child:
            found: dict[str, Any] = json.loads(line)
            return found
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    return None


def become(request: dict[str, Any]) -> None:
    """Go on as the process that was asked for."""
    signal.alarm(LONGEST)  # ends it, so that nothing waits for it for ever
    os.chdir(request["cwd"])
    os.environ.update(request["environment"])
    write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    opened = [os.open(os.devnull, os.O_RDONLY), *(os.open(request[name], write) for name in ("stdout", "stderr"))]
    for number, file in enumerate(opened):
        os.dup2(file, number)
        os.close(file)
    sys.argv = ["sdft", *request["arguments"]]
    sys.path[0] = request["cwd"]
    code: object = None
    try:
        runpy.run_module("sdft_cli", run_name="__main__", alter_sys=True)
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    # Taking thousands of modules apart would take longer than most commands; the server below does not either.
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    if asked := serve():
        become(asked)
    os._exit(0)
