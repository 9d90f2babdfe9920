"""What a command tells a person while it works: one sentence at a time, on stderr, as loud as was asked for."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias, TypeVar

from sdft_cli.errors import WARNING

T = TypeVar("T")
Loudness = Literal["quiet", "normal", "verbose"]
ERROR = "sdft: "
"""How the sentence of an error begins."""
_HIDDEN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f"  # control characters but the end of a line: a terminal obeys them
    "\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"  # without width, or turning the text
    "\ufff0-\ufffb\ufffe\uffff\U000e0000-\U000e0fff"  # hidden, or no characters
    "\ud800-\udfff]"  # halves of characters: no terminal can show them
)
Report: TypeAlias = Callable[[str, float, float], None]
"""Told of long work: what it is, how much of it is done, and how much there is."""
_loudness: Loudness = "normal"
_rank = 0
_watchers: list[Report] = []


def set_loudness(loudness: Loudness) -> None:
    """Say how much this process tells: warnings and errors only, notices and progress too, or all that is known."""
    global _loudness
    _loudness = loudness


def loudness() -> Loudness:
    """Return how much this process tells."""
    return _loudness


def set_rank(rank: int) -> None:
    """Say which of the processes of one command this is: only the first one, of rank 0, tells anything."""
    global _rank
    _rank = rank


def speaks() -> bool:
    """Say whether this process is the one that tells."""
    return _rank == 0


def visible(text: str, keep: str = "") -> str:
    """Return a text for the eye: characters that steer a terminal, hide or reorder text are written as escapes.

    Ends of lines stay, and the characters of `keep`, e.g. a tab; nothing is lost: `\\x1b[31m` for an escape sequence.
    """

    def written(found: re.Match[str]) -> str:
        return found[0] if found[0] in keep else found[0].encode("unicode_escape").decode("ascii")

    return _HIDDEN.sub(written, text)


def say(text: str) -> None:
    """Print a notice to stderr, as plain text; a warning in bold where that is a terminal.

    When quiet, only warnings and errors are printed; nothing by a process that is not the first of its command.
    """
    if _rank:
        return
    if _loudness == "quiet" and not text.startswith((WARNING, ERROR)):
        return
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM") in ("dumb", "unknown")
    loud = text.startswith(WARNING) and sys.stderr.isatty() and not plain
    print(f"\x1b[1;31m{visible(text)}\x1b[0m" if loud else visible(text), file=sys.stderr, flush=True)


@contextmanager
def watching(report: Report) -> Iterator[None]:
    """Have `report` told of all progress meanwhile."""
    _watchers.append(report)
    try:
        yield
    finally:
        _watchers.pop()


def progress(what: str, done: float, total: float) -> None:
    """Tell how far long work is, if someone watches; `done == total` ends it."""
    if _watchers:
        _watchers[-1](what, done, total)


def tracked(items: Collection[T], what: str) -> Iterator[T]:
    """Yield items, and tell how many of them are done."""
    for number, item in enumerate(items):
        progress(what, number, len(items))
        yield item
    progress(what, len(items), len(items))


def some(names: list[str]) -> str:
    """Return the first five names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
