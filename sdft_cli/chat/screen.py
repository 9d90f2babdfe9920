"""Where a chat is shown: a terminal or a pipe, as plain text or as JSON lines. What models write is never obeyed."""

from __future__ import annotations

import json
import os
import sys
from typing import TextIO

from sdft_cli.chat.answer import Answer
from sdft_cli.notices import say, visible


class TextScreen:
    """Answers as text, while they come; remarks below them, dim on a terminal.

    Args:
        file: stdout, if None.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file or sys.stdout
        self._dim = self._file.isatty() and "NO_COLOR" not in os.environ
        self._at_start = True

    def note(self, text: str) -> None:
        """Show a line that nobody said."""
        self._line(text)

    def begin(self, name: str | None) -> None:
        """Begin an answer, under a name where several models answer."""
        if name is not None:
            self._line(f"--- {name} ---")
        self._at_start = True

    def write(self, text: str) -> None:
        """Show a piece of an answer."""
        self._file.write(visible(text, keep="\t"))
        self._file.flush()
        self._at_start = text.endswith("\n")

    def end(self, answer: Answer) -> None:
        """End an answer: its calls, and what else there is to say of it."""
        for remark in answer.remarks():
            self._line(remark)
        if not self._at_start:
            self._file.write("\n")
        self._file.flush()
        self._at_start = True

    def _line(self, text: str) -> None:
        start = "" if self._at_start else "\n"
        self._file.write(f"{start}\x1b[2m{text}\x1b[0m\n" if self._dim else f"{start}{text}\n")
        self._file.flush()
        self._at_start = True


class JsonScreen:
    """Every answer as one line of JSON; notes go to stderr."""

    def note(self, text: str) -> None:
        """Show a line that nobody said."""
        say(text)

    def begin(self, name: str | None) -> None:
        """Begin an answer."""

    def write(self, text: str) -> None:
        """Wait for the whole answer."""

    def end(self, answer: Answer) -> None:
        """Print an answer."""
        print(json.dumps(answer.to_json(), ensure_ascii=True), flush=True)
