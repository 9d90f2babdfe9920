"""An assistant turn taken apart, and the walk over its text that all syntaxes share.

A call that is not closed is not a call: it is reported as unterminated. A call inside a think block is not a call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sdft_cli.records import ToolSchema

UNTERMINATED = "unterminated"
Tools = dict[str, ToolSchema]
"""The tools of a turn by their names."""


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """A call that parses: its tool's name and its arguments."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ParsedTurn:
    """An assistant turn taken apart.

    `errors` has one entry per call that was begun and is none: `unterminated`, `not JSON`, `no name`, ... `failed` has
    the raw text of each of them, without its tags. `begun` is the tool that the turn's last call names, if that call is
    unterminated and got as far as the name. `thought` is what think blocks hold, as it was written. `prose` says where
    content and thoughts stand in the text: (start, end) of each piece, in their order.
    """

    content: str
    calls: tuple[ParsedCall, ...]
    errors: tuple[str, ...]
    begun: str | None = None
    failed: tuple[str, ...] = ()
    thought: str = ""
    prose: tuple[tuple[int, int], ...] = field(default=(), compare=False)

    @property
    def well_formed(self) -> bool:
        """At least one call, and every call that was begun parses."""
        return bool(self.calls) and not self.errors


@dataclass(frozen=True, slots=True)
class Syntax:
    """How one family of models writes its calls: a name for a reader, and what takes a turn apart."""

    name: str
    parse: Callable[[str, Sequence[ToolSchema]], ParsedTurn]


Found = tuple[ParsedCall | str, int, int]
"""A call, or what is wrong with it, and where it stands."""


@dataclass(slots=True)
class TurnSoFar:
    """What was found up to a position of the text."""

    content: list[str] = field(default_factory=list)
    calls: list[ParsedCall] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    begun: str | None = None
    failed: list[str] = field(default_factory=list)
    thought: list[str] = field(default_factory=list)
    prose: list[tuple[int, int]] = field(default_factory=list)

    def say(self, text: str, start: int, end: int) -> None:
        """Add the text from `start` to `end` to what the turn says."""
        self.content.append(text[start:end])
        self.prose.append((start, end))

    def think(self, text: str, start: int, end: int) -> None:
        """Add the text from `start` to `end` to what it thinks."""
        self.thought.append(text[start:end])
        self.prose.append((start, end))

    def add(self, outcome: ParsedCall | str, raw: str, begun: str | None = None) -> None:
        """Add a call, or say what is wrong with its raw text; `begun` is the name that an unterminated one has."""
        self.begun = begun
        if isinstance(outcome, ParsedCall):
            self.calls.append(outcome)
        else:
            self.errors.append(outcome)
            self.failed.append(raw)

    def add_all(self, text: str, found: Sequence[Found]) -> None:
        """Add calls of a list."""
        for outcome, start, end in found:
            self.add(outcome, text[start:end])

    def done(self) -> ParsedTurn:
        """Return the whole turn."""
        return ParsedTurn(
            content="".join(self.content).strip(),
            calls=tuple(self.calls),
            errors=tuple(self.errors),
            begun=self.begun,
            failed=tuple(self.failed),
            thought="\n".join(self.thought),
            prose=tuple(span for span in self.prose if span[0] < span[1]),
        )


@dataclass(frozen=True, slots=True)
class Marks:
    """What stands around the calls of a syntax.

    `opening` and `closing` stand around a call (or a list of them); `closing` may be empty. `thoughts` stand around a
    think block; `prompt_thinks`: the prompt may have begun one, so that its end alone ends it. `dropped` say nothing
    themselves: what frames all calls of a turn, or ends it; `header` is a pattern of more such text.
    """

    opening: str
    closing: str
    thoughts: tuple[str, str] = ("<think>", "</think>")
    dropped: tuple[str, ...] = ()
    header: str = "(?!)"  # matches nowhere
    prompt_thinks: bool = True

    def give_up(
        self,
        text: str,
        start: int,
        turn: TurnSoFar,
        error: str,
        begun: re.Pattern[str],
        seen: tuple[int, int] | None = None,
    ) -> int:
        """Add what cannot be read from `start` on as `error`, or as unterminated; return where the text goes on.

        `begun` matches the beginning of a call and its name. `seen`: where to look from for the closing and for another
        opening mark, if part of the text was read.
        """
        closes, opens = seen or (start, start)
        again = text.find(self.opening, opens)
        close = text.find(self.closing, closes) if self.closing else -1
        if close < 0 or 0 <= again < close:
            stop = len(text) if again < 0 else again
            name = begun.match(text, start, stop)
            torn = self.closing or closes == len(text)
            turn.add(UNTERMINATED if torn else error, text[start:stop], name[1] if name and torn else None)
            return stop
        turn.add(error, text[start:close])
        return close + len(self.closing)

    def close_list(
        self, text: str, position: int, found: Sequence[Found], turn: TurnSoFar, begun: re.Pattern[str]
    ) -> int:
        """Add the calls of a list that ends at a position; without its closing mark, the last one is unterminated.

        Returns where the text goes on.
        """
        closed = re.compile(rf"\s*{re.escape(self.closing)}").match(text, position) if self.closing else None
        if closed or not self.closing:
            turn.add_all(text, found)
            return closed.end() if closed else position
        turn.add_all(text, found[:-1])
        start = found[-1][1] if found else position
        name = begun.match(text, start)
        turn.add(UNTERMINATED, text[start:position], name[1] if name else None)
        return position


Reader = Callable[[str, int, Tools, TurnSoFar], int]
"""Reads the call whose opening mark ends at a position, adds it to the turn, and returns where the text goes on."""


def walk(text: str, tools: Sequence[ToolSchema], marks: Marks, read: Reader) -> ParsedTurn:
    """Take a turn apart: prose, think blocks, and what `read` makes of each opening mark."""
    by_name = {tool.name: tool for tool in tools}
    think, thought = marks.thoughts
    literal = map(re.escape, (think, thought, marks.opening, *marks.dropped))
    found = re.compile("|".join((*literal, marks.header)))
    turn, position = TurnSoFar(), 0
    while mark := found.search(text, position):
        turn.say(text, position, mark.start())
        if mark[0] == think:
            end = text.find(thought, mark.end())
            turn.think(text, mark.end(), end if end >= 0 else len(text))
            position = len(text) if end < 0 else end + len(thought)
        elif mark[0] == thought and marks.prompt_thinks:  # the prompt began the block: all so far was thought
            turn, position = TurnSoFar(), mark.end()
            turn.think(text, 0, mark.start())
        elif mark[0] == marks.opening:
            position = read(text, mark.end(), by_name, turn)
        else:
            position = mark.end()
    turn.say(text, position, len(text))
    return turn.done()
