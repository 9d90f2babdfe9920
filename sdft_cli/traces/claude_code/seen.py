"""The lines that the files of a source hold: which are repeated, which sessions they join, and where a parent is."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from sdft_cli.errors import DataError
from sdft_cli.records.on_disk import no_room
from sdft_cli.traces.claude_code.lines import Line, group_of, read
from sdft_cli.traces.fields import object_of, stem_of, text_of
from sdft_cli.traces.packed import opened
from sdft_cli.traces.rows import LOGS, suffix_of
from sdft_cli.traces.types import ReadReport

CACHE_KB = 32 << 10
"""Memory that sqlite may take for the lines of a source."""
_UUID = re.compile(rb'"uuid"\s*:\s*"([^"\\]+)"')


class _First:
    """A dictionary that keeps what came first for each key, in a temporary file of sqlite's: sources have many lines.

    A key is kept as its hash of 64 bits, a group and a place (anything hashable) once each.
    """

    def __init__(self) -> None:
        self._things: list[Any] = []
        self._numbers: dict[Any, int] = {}

    @cached_property
    def _table(self) -> sqlite3.Connection:
        table = sqlite3.connect("", isolation_level=None)
        table.execute(f"PRAGMA cache_size = -{CACHE_KB}")
        table.execute("PRAGMA journal_mode = OFF")
        table.execute("CREATE TABLE first (key INTEGER PRIMARY KEY, content INTEGER, grp INTEGER, place INTEGER)")
        table.execute("BEGIN")
        return table

    def _number(self, thing: Any) -> int:
        number = self._numbers.setdefault(thing, len(self._things))
        if number == len(self._things):
            self._things.append(thing)
        return number

    def _execute(self, statement: str, values: tuple[int, ...]) -> sqlite3.Cursor:
        try:
            return self._table.execute(statement, values)
        except sqlite3.OperationalError as error:
            raise no_room(error) from error

    def setdefault(self, key: str | bytes, content: int, group: str, place: Any) -> tuple[int, str, Any]:
        """Return what was put first under a key, which may be this. Raises `MachineError` if the disk is full."""
        if (found := self.get(key)) is not None:
            return found
        row = (hash(key), content, self._number(group), self._number(place))
        self._execute("INSERT INTO first VALUES (?, ?, ?, ?)", row)
        return content, group, place

    def get(self, key: str | bytes) -> tuple[int, str, Any] | None:
        """Return what was put first under a key, None if nothing was."""
        row = self._execute("SELECT content, grp, place FROM first WHERE key = ?", (hash(key),)).fetchone()
        return None if row is None else (row[0], self._things[row[1]], self._things[row[2]])


class SeenLines:
    """The lines of the files that were read before, and the groups that share lines.

    A resumed or branched session copies the lines that it starts from into its own file. A line is the same if its
    `uuid` (or the one that `forkedFrom` names) and its message are: some exports number their lines from 1 in every
    file, so the `uuid` alone would join strangers. Other copies have a new `uuid`: an answer is the same if its
    `message.id`, its `requestId` and its words are.

    `files`: all files of the source, among which a parent that is not in its own file is looked for. `every_branch`:
    branches that were given up are wanted as contexts.
    """

    def __init__(self, files: Sequence[Path] = (), every_branch: bool = False) -> None:
        self._files, self.every_branch = files, every_branch
        self._first = _First()
        self._joined: dict[str, str] = {}
        self._order: dict[str, int] = {}
        self._places: _First | None = None
        self._last_read: tuple[Path, list[Line]] | None = None

    def root(self, group: str) -> str:
        """Return the name that all groups joined with `group` share: the one that was read first."""
        path = []
        while group in self._joined:
            path.append(group)
            group = self._joined[group]
        self._joined.update(dict.fromkeys(path, group))
        return group

    def join(self, one: str, other: str) -> None:
        """Let two groups be one."""
        for group in (one, other):
            self._order.setdefault(group, len(self._order))
        older, newer = sorted((self.root(one), self.root(other)), key=self._order.__getitem__)
        if older != newer:
            self._joined[newer] = older

    def repeats(self, line: Line, group: str, path: Path) -> bool:
        """Say whether another file held this line before; if so, join the two groups."""
        key = text_of(object_of(line.data, "forkedFrom"), "messageUuid") or line.uuid
        content = hash(msgspec.json.encode([line.kind, line.data.get("message")]))
        found = self._held(key, content, group, path)
        answer, request = text_of(line.message, "id"), text_of(line.data, "requestId")
        if line.kind == "assistant" and answer and request:
            words = hash(msgspec.json.encode(line.message.get("content")))
            # A fork in its parent's file copies its call, so the chain belongs to the place.
            found = self._held(f"{answer} {request} {words}", words, group, (path, line.agent)) or found
        return found

    def _held(self, key: str, content: int, group: str, place: object) -> bool:
        first_content, first_group, first_place = self._first.setdefault(key, content, group, place)
        self._order.setdefault(group, len(self._order))
        if first_content != content or first_place == place:
            return False
        self.join(first_group, group)
        return True

    def before(self, uuid: str, path: Path) -> tuple[list[Line], Path, str] | None:
        """Return the lines of another file up to one of them, that file, and its group; None if no file holds it."""
        other = self._place(uuid)
        if other is None or other == path:
            return None
        if self._last_read is None or self._last_read[0] != other:
            self._last_read = other, read(other, ReadReport())
        lines = self._last_read[1]
        end = next((line for line in lines if line.uuid == uuid), None)
        return (up_to(lines, end), other, group_of(lines, stem_of(other))) if end is not None else None

    def _place(self, uuid: str) -> Path | None:
        """Return the first file of the source that has a line with this `uuid`; all are searched once, when asked."""
        if self._places is None:
            self._places = _First()
            for path in self._files:
                if suffix_of(path) in LOGS:
                    # `read_source` names a file that cannot be unpacked.
                    with suppress(DataError), opened(path) as file:
                        for line in file:
                            for found in _UUID.finditer(line):
                                self._places.setdefault(found.group(1), 0, "", path)
        first = self._places.get(uuid.encode("utf-8", "surrogatepass"))
        return first[2] if first else None


def up_to(lines: Sequence[Line], end: Line) -> list[Line]:
    """Return copies of the lines of a chain up to one of them: numbered below 1, and repeated."""
    taken = [line for line in lines if line.number <= end.number and line.agent == end.agent]
    return [Line(i - len(taken), x.data, x.kind, x.uuid, x.parent, x.by_order, True) for i, x in enumerate(taken)]
