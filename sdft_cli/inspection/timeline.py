"""One session, message by message: who speaks, how long, what is called, and what became of each turn."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

from sdft_cli.inspection.names import Fate, fates
from sdft_cli.inspection.screen import Screen
from sdft_cli.records.lazy import LazyDataset
from sdft_cli.records.reasons import meaning_of
from sdft_cli.records.types import Message, RecordRow, Rejection, Session
from sdft_cli.report.visible import cells_of, folded, in_short, visible

INDENT = 30
"""Cells before the text of a message: its number, role and length."""
LONGEST_FATE = 600
"""What became of a turn is said in so many cells at most; --json has all of it."""
_STYLES = {"train": "green", "validation": "cyan", None: "yellow"}


def lengths(row: RecordRow | Rejection) -> str:
    """Return the tokens of a turn's prompt and of the turn, or "" where they were not counted."""
    if row.prompt_tokens is None or row.reference_tokens is None:
        return ""
    return f"{row.prompt_tokens:,} + {row.reference_tokens:,} tokens"


def why(row: Rejection) -> str:
    """Return why a turn was dropped, in words."""
    told = [part for part in (meaning_of(row.reason), row.detail) if part]
    return f"{row.reason}: {'; '.join(told)}" if told else row.reason


def fate_text(fate: Fate) -> str:
    """Return what became of a turn, as hostile text."""
    told = [lengths(fate.row)] if lengths(fate.row) else []
    if fate.dropped:
        return ", ".join([f"dropped, {why(fate.dropped)}", *told])
    return ", ".join([f"{fate.split} record", *told])


def message_lines(
    index: int, message: Message, screen: Screen, fate: Fate | None = None, tool: str | None = None
) -> Iterator[str]:
    """Show a message in short: a line for it, one for each of its calls, and what became of it."""
    room = max(20, screen.width - INDENT)
    head = f"{index:>4}  {visible(message.role):<9} {len(message.content):>9,} ch"
    begin = f"{in_short(tool, room // 2, told=False)}: " if tool else ""
    text = in_short(message.content, room - cells_of(begin), told=False)
    yield f"{screen.bold(head)}  {begin}{text}".rstrip()
    pad = " " * INDENT
    for call in message.tool_calls:
        yield pad + screen.styled(in_short(f"-> {call.name} {call.arguments}", room), "magenta")
    if message.status == "repeated":
        yield from (pad + screen.dim(line) for line in folded("a turn of another session, here as context only", room))
    if fate:
        told = in_short(fate_text(fate), LONGEST_FATE)
        yield from (pad + screen.styled(line, _STYLES[fate.split]) for line in folded(f"[{told}]", room))


class Timeline:
    """A session, and what became of its turns; so many messages at most."""

    def __init__(self, data: LazyDataset, session_id: str, limit: int | None = None) -> None:
        self.data, self.session_id, self.limit = data, session_id, limit

    @cached_property
    def session(self) -> Session:
        return self.data.session(self.session_id)

    @cached_property
    def fates(self) -> list[Fate]:
        return fates(self.data, self.session_id)

    def _by_turn(self) -> dict[int, Fate]:
        return {fate.row.turn_index: fate for fate in self.fates if fate.row.turn_index is not None}

    def lines(self, screen: Screen) -> Iterator[str]:
        yield from self._head(screen)
        shown = self.session.messages[: self.limit]
        tools = _tools_of(self.session)
        by_turn = self._by_turn()
        for index, message in enumerate(shown):
            yield from message_lines(index, message, screen, by_turn.get(index), tools.get(index))
        if rest := len(self.session.messages) - len(shown):
            yield f"{rest:,} more message(s): without --limit, all are shown"
        for fate in self.fates:
            if fate.row.turn_index is None:
                told = in_short(f"{fate.row.record_id} [in no message: {fate_text(fate)}]", LONGEST_FATE)
                yield from (screen.styled(line, _STYLES[None]) for line in folded(told, screen.width))

    def _head(self, screen: Screen) -> Iterator[str]:
        yield screen.rule(f"Session {in_short(self.session_id, screen.width - 14)}")
        session = self.session
        count = {split: sum(fate.split == split for fate in self.fates) for split in ("train", "validation", None)}
        characters = sum(len(message.content) for message in session.messages)
        yield (
            f"{len(session.messages):,} messages, {characters:,} characters; turns: {count['train']:,} train, "
            f"{count['validation']:,} validation, {count[None]:,} dropped; tokens are those of prompt + turn"
        )
        if session.tools:
            yield in_short(f"{len(session.tools):,} tools: {', '.join(t.name for t in session.tools)}", screen.width)
        for key, value in {"group": session.group, **session.metadata}.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield screen.dim(in_short(f"{key}: {text}", screen.width))

    def document(self) -> dict[str, Any]:
        session, by_turn = self.session, self._by_turn()
        return {
            "session_id": session.session_id,
            "group": session.group,
            "metadata": dict(session.metadata),
            "tools": [tool.as_openai() for tool in session.tools],
            "messages": [
                {"index": i, **message.as_openai(lambda call: call.arguments), "status": message.status}
                | ({"fate": fate_document(by_turn[i])} if i in by_turn else {})
                for i, message in enumerate(session.messages[: self.limit])
            ],
            "in_no_message": [fate_document(fate) for fate in self.fates if fate.row.turn_index is None],
        }

    def after(self, call: Callable[..., str]) -> str:
        turns = [fate for fate in self.fates if fate.row.turn_index is not None]
        if not turns:
            return f"No turn of it is in the dataset; the others: {call()}"
        chosen = next((fate for fate in turns if fate.split), turns[0])
        return f"Look at a record: {call(f'{self.session.session_id}/{chosen.row.turn_index}')}"


def fate_document(fate: Fate) -> dict[str, Any]:
    """Return what became of a turn, for JSON."""
    row = fate.row
    counts = {name: getattr(row, name) for name in ("prompt_tokens", "teacher_prompt_tokens", "reference_tokens")}
    found: dict[str, Any] = {"record_id": row.record_id, "split": fate.split, **counts}
    return {**found, "reason": row.reason, "detail": row.detail} if isinstance(row, Rejection) else found


def _tools_of(session: Session) -> dict[int, str]:
    """Return the tool whose result each tool message is: by its own word, or by the call that it answers."""
    called: dict[str, str] = {}
    found = {}
    for index, message in enumerate(session.messages):
        called |= {call.id: call.name for call in message.tool_calls}
        if message.role == "tool":
            found[index] = message.name or called.get(message.tool_call_id or "", "?")
    return found
