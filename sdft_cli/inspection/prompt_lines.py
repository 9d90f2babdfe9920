"""A prompt as lines with its control tokens marked, and how two prompts differ."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from difflib import SequenceMatcher
from itertools import takewhile
from typing import Literal, TypeVar

from sdft_cli.inspection.screen import Screen
from sdft_cli.report.visible import MORE, visible

OPEN, CLOSE = "\N{MATHEMATICAL LEFT WHITE SQUARE BRACKET}", "\N{MATHEMATICAL RIGHT WHITE SQUARE BRACKET}"
"""Stand around control tokens; in text they are written as escapes."""
LEGEND = f"{OPEN}{CLOSE} marks a control token; the same characters without it are plain text to the model."
LONGEST_LINE = 2000
"""Longer lines are cut, and it is said how much is missing."""
MOST_COMPARED = 4_000_000
"""Where the product of the lines of two texts, without what they begin and end with, is larger, all of them differ."""

Part = tuple[str, bool]
"""A text, and whether it is a control token."""
Line = tuple[Part, ...]
Change = Literal["=", "-", "+"]
T = TypeVar("T", bound=Hashable)


def lines_of(parts: Sequence[Part]) -> list[Line]:
    """Cut a text into lines; their ends are left out."""
    lines: list[list[Part]] = [[]]
    for text, control in parts:
        first, *rest = [text] if control else text.split("\n")
        lines[-1].append((first, control))
        lines += [[(line, control)] for line in rest]
    return [tuple(part for part in line if part[0]) for line in lines]


def written(line: Line, screen: Screen) -> str:
    """Return a line for the terminal: tabs as they are, all else that is not printable as escapes."""
    room, shown = LONGEST_LINE, ""
    for text, control in line:
        head = text[:room]
        room -= len(head)
        if control:
            shown += screen.styled(f"{OPEN}{visible(head)}{CLOSE}", "bold reverse")
        else:
            shown += visible(head, keep="\t", also=OPEN + CLOSE)
    missing = sum(len(text) for text, _ in line) - LONGEST_LINE
    return shown + screen.bold(f" {MORE} {missing:,} more characters in this line") if missing > 0 else shown


def differences(one: Sequence[T], other: Sequence[T]) -> Iterator[tuple[Change, Sequence[T]]]:
    """Say how a sequence becomes another: runs that both have ("="), only the first ("-") or the second ("+")."""
    shortest = min(len(one), len(other))
    before = sum(1 for _ in takewhile(lambda i: one[i] == other[i], range(shortest)))
    behind = sum(1 for _ in takewhile(lambda i: one[-1 - i] == other[-1 - i], range(shortest - before)))
    a, b = one[before : len(one) - behind], other[before : len(other) - behind]
    runs: list[tuple[Change, Sequence[T]]] = [("=", one[:before])]
    if len(a) * len(b) > MOST_COMPARED:
        runs += [("-", a), ("+", b)]
    else:
        for kind, i, j, k, m in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
            runs += [("=", a[i:j])] if kind == "equal" else [("-", a[i:j]), ("+", b[k:m])]
    runs.append(("=", one[len(one) - behind :]))
    yield from ((change, run) for change, run in runs if run)
