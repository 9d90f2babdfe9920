"""What every reader returns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from sdft_cli.records import Rejection, Session


@dataclass
class ReadReport:
    """The account of one or more files: what happened to each line, and which turns are in no conversation.

    `lines` counts lines by what they were (`conversation`, `meta`, `broken`, ...); their sum is the number of
    non-blank lines. `notes` counts events inside lines (images, repaired links, orphan results).
    """

    lines: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    """What the reader was not tested with, by name: `line type: x`, `attachment type: y`, `version: 2.2.0`."""
    broken: list[str] = field(default_factory=list)
    """`file:line` of each line that is not a JSON object."""
    ignored: list[str] = field(default_factory=list)
    """Files beside the sessions that hold none: settings, metadata."""
    lost_turns: list[Rejection] = field(default_factory=list)
    """Assistant turns outside every kept conversation: abandoned branches, API errors."""
    fates: dict[int, str] = field(default_factory=dict)
    """What became of each line of one file, by number from 1; `lines` counts these. Not merged."""

    def merge(self, other: ReadReport) -> None:
        """Add the account of another file to this one."""
        self.lines.update(other.lines)
        self.notes.update(other.notes)
        self.unknown.update(other.unknown)
        self.broken.extend(other.broken)
        self.ignored.extend(other.ignored)
        self.lost_turns.extend(other.lost_turns)


@dataclass
class FileSessions:
    """The sessions of one file, or of a whole source, and the account of its lines."""

    sessions: Sequence[Session]
    report: ReadReport
