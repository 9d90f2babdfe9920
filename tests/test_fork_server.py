"""The commands of most tests run in forks; where a variable of a library's forbids it, each would take seconds more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import importlib, os
from tests.fork_server import LIBRARIES, READ_LATE, SET_BY_LIBRARIES
before = dict(os.environ)
for name in (*LIBRARIES, "sdft_cli.engine.models.load"):
    importlib.import_module(name)
changed = {name for name in os.environ.keys() | before if os.environ.get(name) != before.get(name)}
print(*sorted(name for name in changed if not name.startswith(READ_LATE + SET_BY_LIBRARIES)))
"""


def test_what_libraries_set_for_themselves_forbids_no_fork() -> None:
    pytest.importorskip("torch")
    # not what this process has, where the libraries may have set theirs already
    bare = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "OMP_NUM_THREADS") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=bare | {"HF_HUB_OFFLINE": "1"},
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == ""
