"""What the readers of logs share: numbered lines, each with one fate, and contexts of messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sdft_cli.records import Message, Session
from sdft_cli.traces.agents.calls import one_system, pair_calls
from sdft_cli.traces.fields import name_of
from sdft_cli.traces.rows import read_lines
from sdft_cli.traces.types import FileSessions, ReadReport


@dataclass
class Entry:
    """A message and the line that it came from; `key` is what later lines call it."""

    message: Message
    line: int
    key: str = ""


@dataclass
class Context:
    """One context window. `agent`: the subagent whose it is, "" for the main conversation."""

    agent: str = ""
    entries: list[Entry] = field(default_factory=list)

    def add(self, line: int, *messages: Message, key: str = "") -> None:
        """Append messages that one line holds."""
        self.entries += [Entry(message, line, key) for message in messages]

    def repeated(self) -> list[Entry]:
        """Return the entries as a later context shows them: its turns count once, here."""
        return [
            replace(e, message=replace(e.message, status="repeated")) if e.message.role == "assistant" else e
            for e in self.entries
        ]


def numbered_objects(path: Path, report: ReadReport) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a log with their line numbers; what is no object gets the fate `broken`."""
    for number, data in read_lines(path):
        if data is None:
            report.fates[number] = "broken"
            report.broken.append(f"{name_of(path)}:{number}")
        else:
            yield number, data


def _paired(context: Context, report: ReadReport) -> list[Message]:
    """Return the messages of a context with calls and results paired, and note the fates of their lines."""
    found = pair_calls([entry.message for entry in context.entries], report.notes)
    messages = one_system([message for message in found if message is not None], report.notes)
    own = any(m.role == "assistant" and m.status != "repeated" for m in messages)
    for entry, message in zip(context.entries, found, strict=True):
        fate = "orphan_result" if message is None else "conversation" if own else "no_turns"
        if report.fates.get(entry.line) != "conversation":
            report.fates[entry.line] = fate
    return messages if own else []


def sessions_of(
    contexts: Iterable[Context],
    path: Path,
    report: ReadReport,
    name: str,
    session_id: str,
    group: str,
    models: set[str],
) -> FileSessions:
    """Make a session of each context with a turn of its own, and count the fates of the lines.

    The first context of the main conversation is `<id>`, those after it `<id>#2`, ..., a subagent's `<id>/agent-<key>`.
    """
    sessions: list[Session] = []
    for context in contexts:
        messages = _paired(context, report)
        if not messages:
            report.notes["contexts_without_turns"] += bool(context.entries)
            continue
        base = f"{session_id}/agent-{context.agent}" if context.agent else session_id
        number = 1 + sum(s.metadata.get("agent", "") == context.agent for s in sessions)
        metadata: dict[str, Any] = {
            "format": name,
            "file": name_of(path),
            "models": sorted(models - {""}),
            "context": number,
        }
        if context.agent:
            metadata["agent"] = context.agent
        new = base if number == 1 else f"{base}#{number}"
        sessions.append(Session(new, tuple(messages), group=group or session_id, metadata=metadata))
    report.lines.update(report.fates.values())
    return FileSessions(sessions, report)
