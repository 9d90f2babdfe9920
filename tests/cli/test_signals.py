"""Ctrl-C and SIGTERM end a command with 130 and one sentence, whatever a library makes of them on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sdft_cli

SAID = "sdft: interrupted; nothing half-written was left behind."
COMMAND = """
import ctypes, os, signal, typer
from sdft_cli.cli.support.common import command

@command
def prepare():
    {body}

app = typer.Typer()
app.command()(prepare)
app()
"""
KILL = "os.kill(os.getpid(), signal.{name})"
BODIES = {
    "plain": "KILL",
    # as the start of an extension module runs Python: 257 is Py_file_input
    "through_an_extension": """
    run = ctypes.pythonapi.PyRun_String
    run.argtypes, run.restype = [ctypes.c_char_p, ctypes.c_int, ctypes.py_object, ctypes.py_object], ctypes.py_object
    run(b"KILL", 257, globals(), globals())""",
    "wrapped": """
    try:
        KILL
    except KeyboardInterrupt as error:
        raise ImportError("already registered") from error""",
    "half_imported": """
    try:
        KILL
    except KeyboardInterrupt:
        import ray.of_no_such_name""",
    "wrapped_by_us": """
    from sdft_cli.errors import MachineError
    try:
        KILL
    except KeyboardInterrupt as error:
        raise MachineError("unsloth does not import here.") from error""",
    "asked": """
    try:
        KILL
    except KeyboardInterrupt:
        raise typer.Abort""",
}


def _run(folder: Path, body: str, name: str = "SIGINT", **options: Any) -> subprocess.CompletedProcess[str]:
    (folder / "tool.py").write_text(COMMAND.format(body=body.replace("KILL", KILL.format(name=name)).strip()))
    # as `python -m sdft_cli`: only there does Python itself look, at its end, for an interrupt that nobody handled
    command = [sys.executable, "-m", "tool"]
    paths = {"PYTHONPATH": os.pathsep.join([str(folder), str(Path(sdft_cli.__file__).parents[1])])}
    return subprocess.run(command, env=os.environ | paths, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("body", BODIES.values(), ids=list(BODIES))
def test_a_signal_is_130_however_it_comes_out(tmp_path: Path, body: str, name: str) -> None:
    done = _run(tmp_path, body, name)
    assert (done.returncode, done.stderr.strip()) == (130, SAID)


def test_a_signal_that_changed_nothing_changes_no_exit_code(tmp_path: Path) -> None:
    done = _run(tmp_path, "\n    try:\n        KILL\n    except KeyboardInterrupt:\n        raise typer.Exit(3)")
    assert (done.returncode, done.stderr) == (3, "")


def test_what_explains_a_signal_is_said(tmp_path: Path) -> None:
    done = _run(
        tmp_path,
        """
    from sdft_cli.errors import LostProcess
    try:
        KILL
    except KeyboardInterrupt as error:
        raise LostProcess("Process 1 was killed.") from error""",
        "SIGTERM",
    )
    assert (done.returncode, done.stderr.strip()) == (1, "sdft: Process 1 was killed.")


def test_an_error_without_a_signal_stays_a_bug(tmp_path: Path) -> None:
    done = _run(tmp_path, 'raise ImportError("already registered")')
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "already registered" in done.stderr


def test_a_command_in_the_background_keeps_ignoring_ctrl_c(tmp_path: Path) -> None:
    ignored = _run(tmp_path, "KILL", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    assert (ignored.returncode, ignored.stderr) == (0, "")
