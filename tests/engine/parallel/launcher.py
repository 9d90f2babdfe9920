"""`python -m tests.engine.parallel.launcher`: starts the processes of a run as `torchrun` does, from one that is warm.

Reads a request per line of JSON: `module` to run with `arguments` in `cwd` by `count` processes, `logs`, the beginning
of the files of what they print; perhaps `environment`, variables to set; perhaps `kill`: which `rank`, once `file` has
so many `lines`. Answers with the exit codes by rank (negative: the signal that ended it), and the seconds from the kill
to the end.

Unlike `torchrun` it lets the others be when one is gone: they have to see it themselves.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tests.fork_server import LIBRARIES

ROOT = Path(__file__).resolve().parents[3]
MODULES = (
    "accelerate.optimizer",
    "accelerate.scheduler",
    "peft.tuners.lora",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.llama.tokenization_llama",
    "sdft_cli.cli.train",
    "sdft_cli.engine.models.backend_transformers",
    "sdft_cli.engine.score.gate",
    "sdft_cli.engine.train.heldout",
    "sdft_cli.engine.train.rehearsal",
    "sdft_cli.engine.train.run",
    "sdft_cli.engine.train.trackers",
)
LONGEST = 120
"""Seconds of a process; none outlives the tests."""


class Launcher:
    """Asks a warm process for runs, one after the other."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.engine.parallel.launcher"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, count: int, module: str, arguments: list[str], cwd: Path, logs: str, **more: Any) -> dict[str, Any]:
        """Run a module in several processes; returns the answer."""
        assert self.process.stdin
        assert self.process.stdout
        request = {"count": count, "module": module, "arguments": arguments, "cwd": str(cwd), "logs": logs, **more}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def import_libraries() -> None:
    """Import what takes seconds, and compute nothing: a fork cannot use the threads of its parent."""
    for name in (*LIBRARIES, *MODULES):
        importlib.import_module(name)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def become(rank: int, request: dict[str, Any], port: int) -> None:
    """Go on as one process of a run."""
    signal.alarm(LONGEST)
    os.chdir(request["cwd"])
    os.environ |= request.get("environment", {})
    if request["count"] > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(request["count"])}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(f"{request['logs']}.{name}{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    sys.argv = [request["module"], *request["arguments"]]
    code: object = None
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def lines_of(file: Path) -> int:
    return len(file.read_bytes().splitlines()) if file.is_file() else 0


def launch(request: dict[str, Any]) -> dict[str, Any] | None:
    """Start the processes and wait for them; None in each of them."""
    gc.freeze()  # no fork looks through what the libraries made
    port, processes = free_port(), []
    for rank in range(request["count"]):
        child = os.fork()
        if not child:
            become(rank, request, port)
            return None
        processes.append(child)
    began = time.monotonic()
    kill = request.get("kill")
    if kill:
        while lines_of(Path(kill["file"])) < kill["lines"] and time.monotonic() < began + LONGEST:
            time.sleep(0.02)
        os.kill(processes[kill["rank"]], getattr(signal, kill.get("signal", "SIGKILL")))
        began = time.monotonic()
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
    return {"codes": codes, "seconds": time.monotonic() - began}


def main() -> None:
    import_libraries()
    for line in sys.stdin:
        answer = launch(json.loads(line))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
