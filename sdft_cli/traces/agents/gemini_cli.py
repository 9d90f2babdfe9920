"""Gemini CLI's session files: a header and then one message per line, or all messages in one JSON document.

A line with the `id` of an earlier one replaces it: the agent writes a message again when its calls are done.
`$rewindTo` takes back a message and all after it. `$set` changes the header; where it sets `messages`, the agent
replaced its history (a summary, or results masked), so a new context begins. Its turns that were recorded before count
once, and those that were not are the agent program's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdft_cli.records import Message, Rejection
from sdft_cli.records.reasons import ABANDONED_BRANCH, SYNTHETIC
from sdft_cli.traces.agents.calls import tool_call
from sdft_cli.traces.agents.log import Context, numbered_objects, sessions_of
from sdft_cli.traces.agents.parts import parts_of
from sdft_cli.traces.fields import name_of, object_of, objects_of, stem_of, text_of
from sdft_cli.traces.types import FileSessions, ReadReport

FORMAT = "gemini-cli"
_NOTICES = ("info", "error", "warning")


def looks_like(objects: Iterable[dict[str, Any]]) -> bool:
    """Say whether these first objects are Gemini CLI's."""
    return any(
        (isinstance(row.get("sessionId"), str) and isinstance(row.get("projectHash"), str))
        or (row.get("type") == "gemini" and isinstance(row.get("id"), str))
        for row in objects
    )


@dataclass
class _Record:
    data: dict[str, Any]
    line: int
    status: str | None = None


@dataclass
class _Session:
    """The windows of a session: the records by id, in order; and the window in which an id stood first."""

    report: ReadReport
    windows: list[dict[str, _Record]] = field(default_factory=lambda: [{}])
    first: dict[str, dict[str, _Record]] = field(default_factory=dict)
    header: dict[str, Any] = field(default_factory=dict)
    rewound: list[str] = field(default_factory=list)

    def put(self, data: dict[str, Any], line: int) -> None:
        """Add a message, or replace the one with its id, in the window where it was written too."""
        key = text_of(data, "id") or f"line:{line}:{len(self.windows[-1])}"
        window = self.windows[-1]
        if (old := window.get(key)) is not None and old.line != line:
            self.report.fates[old.line] = "replaced"
        window[key] = _Record(data, line, old.status if old else None)
        owner = self.first.setdefault(key, window)
        if owner is not window and key in owner:
            owner[key] = _Record(data, line)

    def rewind(self, key: str) -> None:
        """Take back a message and all after it; without that message, all."""
        window = self.windows[-1]
        keys = list(window)
        for name in keys[keys.index(key) if key in window else 0 :]:
            record = window.pop(name)
            self.report.fates[record.line] = "abandoned"
            if record.data.get("type") == "gemini" and record.status is None:
                self.rewound.append(name)

    def replace(self, messages: list[dict[str, Any]], line: int) -> None:
        """Begin a window with this history."""
        window: dict[str, _Record] = {}
        for number, data in enumerate(messages):
            key = text_of(data, "id") or f"line:{line}:{number}"
            window[key] = _Record(data, line, "repeated" if key in self.first else SYNTHETIC.key)
            self.first.setdefault(key, window)
        self.windows.append(window)

    def take(self, data: dict[str, Any], line: int) -> None:
        """Take in one line of the file."""
        changes = object_of(data, "$set")
        if isinstance(data.get("$rewindTo"), str):
            self.report.fates[line] = "rewind"
            self.rewind(data["$rewindTo"])
        elif isinstance(data.get("id"), str) and "type" in data:
            known = data["type"] in ("user", "gemini")
            self.report.fates[line] = "no_turns" if known else "notice" if data["type"] in _NOTICES else "unknown_type"
            if known:
                self.put(data, line)
        elif changes or "sessionId" in data:
            self.report.fates[line] = "metadata"
            self.header.update(changes or data)
            if changes and objects_of(changes, "messages"):
                self.replace(objects_of(changes, "messages"), line)
            for message in objects_of(data, "messages"):  # a whole session in one document
                if message.get("type") in ("user", "gemini"):
                    self.put(message, line)
        else:
            self.report.fates[line] = "unknown_type"


def _result(raw: dict[str, Any], call_id: str, report: ReadReport) -> str | None:
    """Return the result of a recorded call, None if it has none; the results of calls beside it may stand there too."""
    found = parts_of(raw.get("result"), report.notes)
    own = [result.content for result in found.results if result.tool_call_id == call_id]
    texts = own or [*(result.content for result in found.results), *found.texts]
    return "\n".join(texts) if texts else None


def _messages(record: _Record, answered: set[str], report: ReadReport) -> list[Message]:
    """Write a record down: a prompt, or a turn and the results of its calls.

    Newer versions also keep results as messages of the user; those of calls in `answered` were shown already.
    """
    data, notes = record.data, report.notes
    found = parts_of(data.get("content"), notes)
    if data.get("type") != "gemini":
        results = [r for r in found.results if r.tool_call_id not in answered]
        return [*results, *([Message("user", found.text)] if found.text.strip() else [])]
    thoughts = [f"{text_of(t, 'subject')}\n{text_of(t, 'description')}".strip() for t in objects_of(data, "thoughts")]
    calls = {call.id or f"part {number}": call for number, call in enumerate(found.calls)}
    results = []
    for raw in objects_of(data, "toolCalls"):
        call = tool_call(raw.get("id"), raw.get("name"), raw.get("args"), notes)
        calls[call.id or f"call {len(calls)}"] = call
        text = _result(raw, call.id, report)
        if text is not None:
            results.append(Message("tool", text, tool_call_id=call.id or None, name=call.name))
            answered.add(call.id)
    reasoning = "\n".join([*found.thoughts, *thoughts])
    turn = Message("assistant", found.text, tuple(calls.values()), reasoning=reasoning, status=record.status)
    return [turn, *results]


def read(path: Path) -> FileSessions:
    """Read one session file of Gemini CLI; `report.fates` says what became of every line."""
    report = ReadReport()
    session = _Session(report)
    for line, data in numbered_objects(path, report):
        session.take(data, line)
    contexts = []
    for window in session.windows:
        contexts.append(Context())
        answered: set[str] = set()
        for key, record in window.items():
            contexts[-1].add(record.line, *_messages(record, answered, report), key=key)
    session_id = text_of(session.header, "sessionId") or stem_of(path)
    models = {text_of(record.data, "model") for window in session.windows for record in window.values()}
    for key in session.rewound:
        report.lost_turns.append(Rejection(f"{session_id}/abandoned-{key}", session_id, None, ABANDONED_BRANCH.key))
    group = name_of(path.parent) if session.header.get("kind") == "subagent" else session_id
    return sessions_of(contexts, path, report, FORMAT, session_id, group, models)
