"""Where a text stands in the messages of a dataset, literally: in what is said, and in names and arguments of calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from sdft_cli.errors import UsageError
from sdft_cli.inspection.names import short_names
from sdft_cli.inspection.screen import Screen
from sdft_cli.records.lazy import LazyDataset, SessionGroup
from sdft_cli.report.visible import MORE, cut, in_short, visible
from sdft_cli.texts import is_unicode

AROUND = 200
"""So many characters on each side of a find are kept."""


@dataclass(frozen=True)
class Hit:
    """A message that holds the text: where in it, how often, and what stands around the first place."""

    session_id: str
    index: int
    role: str
    where: str
    times: int
    before: str
    found: str
    after: str


class Search:
    """The messages that hold a text, of all sessions or of `only`; so many at most."""

    def __init__(self, data: LazyDataset, text: str, only: set[str] | None = None, limit: int | None = None) -> None:
        """Raises `UsageError` if the text is empty or none that a dataset can hold."""
        if not text or not is_unicode(text):
            raise UsageError("--search needs a text to look for: give one, in quotes if it has spaces.")
        self.data, self.text, self.only, self.limit = data, text, only, limit
        # JSON writes some characters otherwise, and arguments are stored as JSON.
        written = (json.dumps(text, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True))
        self._in_json = list(dict.fromkeys((text, *written)))
        self.hits = self.messages = 0
        self.sessions: dict[str, int] = {}

    def rows(self) -> Iterator[Hit]:
        """Read the sessions, a row group at a time, and return what is found on the way."""
        self.hits = self.messages = 0
        for group in self.data.groups(
            ("role", "content", "tool_calls.name", "tool_calls.arguments", "name"), self.only
        ):
            for hit in self._in_group(group):
                if self.hits == self.limit:
                    return
                self.hits += 1
                self.sessions.setdefault(hit.session_id, hit.index)
                yield hit

    def _in_group(self, group: SessionGroup) -> Iterator[Hit]:
        places = self._places(group)
        if not places:
            return
        roles, position = group.of("role"), 0
        for index, where, value, spelled in sorted(places, key=lambda place: place[0]):
            while group.starts[position + 1] <= index:
                position += 1
            session = group.ids[position]
            if self.only is None or session in self.only:
                at = value.index(spelled)
                before, after = value[max(0, at - AROUND) : at], value[at + len(spelled) :][:AROUND]
                times = value.count(spelled)
                yield Hit(
                    session, index - group.starts[position], roles[index].as_py(), where, times, before, spelled, after
                )

    def _places(self, group: SessionGroup) -> list[tuple[int, str, str, str]]:
        """Return message, where in it, the whole value, and the text as it is spelled there."""
        found = [
            (index, where, value, self.text)
            for where, column in (("text", "content"), ("name", "name"))
            for index, value in _matches(group.of(column), self.text)
        ]
        calls, parents = group.calls()
        names, arguments = calls.field("name"), calls.field("arguments")
        for call, value in _matches(names, self.text):
            found.append((parents[call].as_py(), "name of a call", value, self.text))
        seen: set[int] = set()
        for spelled in self._in_json:
            for call, value in _matches(arguments, spelled):
                if call not in seen:
                    seen.add(call)
                    found.append((parents[call].as_py(), f"arguments of {names[call].as_py()}", value, spelled))
        return found

    def lines(self, screen: Screen) -> Iterator[str]:
        sessions = len(self.data.session_ids if self.only is None else self.only)
        yield in_short(f"Messages of {sessions:,} session(s) that hold {self.text}", screen.width)
        names = short_names(self.data.session_ids)
        for hit in self.rows():
            times = f", {hit.times:,} times" if hit.times > 1 else ""
            head = screen.bold(visible(f"{names[hit.session_id]}/{hit.index}"))
            yield f"{head}  {in_short(f'{hit.role}, in {hit.where}{times}', max(40, screen.width // 2))}"
            yield "    " + _in_context(hit, screen)
        if self.hits == self.limit:
            yield f"These are the first {self.hits:,}: without --limit, all are shown"

    def document(self) -> dict[str, Any]:
        return {"dataset": str(self.data.path), "text": self.text, "found": [asdict(hit) for hit in self.rows()]}

    def after(self, call: Callable[..., str]) -> str:
        if not self.hits:
            return f"No message holds this text, in this spelling; the sessions: {call()}"
        name = next(iter(self.sessions))
        told = f"{self.hits:,} place(s) in {len(self.sessions):,} session(s)"
        return f"{told}. Look at the first of these sessions: {call(name)}"


def _matches(column: Any, text: str) -> Iterator[tuple[int, str]]:
    import pyarrow.compute as pc

    for index in pc.indices_nonzero(pc.match_substring(column, text)).to_pylist():
        yield index, column[index].as_py()


def _in_context(hit: Hit, screen: Screen) -> str:
    """Return the find with what stands around it, in one line."""
    found = visible(hit.found)
    room = max(10, screen.width - 4 - len(found))
    before, after = (visible(" ".join(side.split()), also="") for side in (hit.before, hit.after))
    gap_before = " " if hit.before[-1:].isspace() else ""
    gap_after = " " if hit.after[:1].isspace() else ""
    head = cut((before + gap_before)[::-1], room // 3)[::-1]
    tail = cut(gap_after + after, room - len(head) - 2)
    shown = cut(found, screen.width)
    head = f"{MORE}{head}" if len(head) < len(before) or len(hit.before) == AROUND else head
    tail = f"{tail}{MORE}" if len(tail) < len(after) or len(hit.after) == AROUND else tail
    return f"{head}{screen.styled(shown, 'bold underline')}{tail}"
