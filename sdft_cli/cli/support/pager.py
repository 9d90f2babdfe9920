"""Lines on stdout: at once where that is a file or a pipe, in a pager where they are longer than the screen."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdft_cli.inspection.screen import Screen

_STYLE = re.compile(r"\x1b\[[0-9;]*m")


def this_screen() -> Screen:
    """Return the width of stdout, and whether it takes colours: a terminal, and nobody asked for none."""
    from sdft_cli.inspection.screen import Screen

    terminal = sys.stdout.isatty()
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    return Screen(max(40, shutil.get_terminal_size().columns), terminal and not plain)


def show(lines: Iterator[str]) -> None:
    """Print lines as they come; on a terminal that they do not fit on, in `$PAGER`, or in less.

    Characters that stdout cannot encode are written as escapes.
    """
    sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    if not (sys.stdout.isatty() and sys.stdin.isatty()):
        for line in lines:
            print(line)
        return
    size, first, used = shutil.get_terminal_size(), list[str](), 0
    for line in lines:
        first.append(line)
        used += 1 + len(_STYLE.sub("", line)) // size.columns
        if used >= size.lines:
            break
    command = shlex.split(os.environ.get("PAGER", "less"))
    rest = chain(first, lines)
    if used < size.lines or not command or shutil.which(command[0]) is None:
        for line in rest:
            print(line)
    else:
        _page(command, rest)


def _page(command: list[str], lines: Iterator[str]) -> None:
    """Write lines to a pager until it or they end; less shows colours, others get none."""
    colours = os.path.basename(command[0]) == "less"
    environment = {**os.environ, "LESS": os.environ.get("LESS", "-R"), "LESSCHARSET": "utf-8"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, env=environment, text=True, encoding="utf-8", errors="backslashreplace"
    ) as pager:
        assert pager.stdin is not None
        try:
            for line in lines:
                pager.stdin.write((line if colours else _STYLE.sub("", line)) + "\n")
                pager.stdin.flush()
        except (BrokenPipeError, KeyboardInterrupt):  # the reader has seen enough
            pass
        finally:
            _end(pager)


def _end(pager: subprocess.Popen[str]) -> None:
    try:
        if pager.stdin:
            pager.stdin.close()
    except BrokenPipeError:
        pass
    while True:
        try:
            pager.wait()
            return
        except KeyboardInterrupt:  # a key of the pager
            continue
