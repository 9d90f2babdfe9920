"""The lines that the files of a source hold: which are repeated, which sessions they join, and where a parent is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from sdft_cli.errors import DataError
from sdft_cli.traces.claude_code.lines import Line, group_of, read
from sdft_cli.traces.fields import object_of, text_of
from sdft_cli.traces.packed import opened
from sdft_cli.traces.rows import LOGS, suffix_of
from sdft_cli.traces.types import ReadReport

_UUID = re.compile(rb'"uuid"\s*:\s*"([^"\\]+)"')


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
        self._first: dict[str, tuple[int, str, object]] = {}
        self._joined: dict[str, str] = {}
        self._order: dict[str, int] = {}
        self._places: dict[bytes, Path] | None = None
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
        first = self._first.setdefault(key, (content, group, place))
        self._order.setdefault(group, len(self._order))
        if first[0] != content or first[2] == place:
            return False
        self.join(first[1], group)
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
        return (up_to(lines, end), other, group_of(lines, other.stem)) if end is not None else None

    def _place(self, uuid: str) -> Path | None:
        """Return the first file of the source that has a line with this `uuid`; all are searched once, when asked."""
        if self._places is None:
            self._places = {}
            for path in self._files:
                if suffix_of(path) in LOGS:
                    # `read_source` names a file that cannot be unpacked.
                    with suppress(DataError), opened(path) as file:
                        for line in file:
                            for found in _UUID.finditer(line):
                                self._places.setdefault(found.group(1), path)
        return self._places.get(uuid.encode("utf-8", "surrogatepass"))


def up_to(lines: Sequence[Line], end: Line) -> list[Line]:
    """Return copies of the lines of a chain up to one of them: numbered below 1, and repeated."""
    taken = [line for line in lines if line.number <= end.number and line.agent == end.agent]
    return [Line(i - len(taken), x.data, x.kind, x.uuid, x.parent, x.by_order, True) for i, x in enumerate(taken)]
