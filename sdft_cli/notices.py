"""What a command tells a person while it works: one sentence at a time, on stderr."""

from __future__ import annotations

import os
import sys

from sdft_cli.errors import WARNING


def say(text: str) -> None:
    """Print a notice to stderr, as plain text; a warning in bold where that is a terminal."""
    loud = text.startswith(WARNING) and sys.stderr.isatty() and "NO_COLOR" not in os.environ
    print(f"\x1b[1;31m{text}\x1b[0m" if loud else text, file=sys.stderr)


def some(names: list[str]) -> str:
    """Return the first five names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
