"""Copilot CLI's `events.jsonl`: one event per line, of which the messages and the results of tools make the session.

The model was sent `transformedContent` of a prompt and `content` of a result, so those are read. Events of subagents
are contexts of their own. After a compaction a context begins with its summary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdft_cli.records import Message, Rejection
from sdft_cli.records.reasons import ABANDONED_BRANCH, INTERRUPTED
from sdft_cli.traces.agents.calls import json_text, tool_call
from sdft_cli.traces.agents.log import Context, numbered_objects, sessions_of
from sdft_cli.traces.fields import name_of, object_of, objects_of, stem_of, text_of
from sdft_cli.traces.types import FileSessions, ReadReport

FORMAT = "copilot-cli"
_SEEN = ("user.message", "assistant.message", "system.message", "tool.execution_complete")
_FAMILIES = ("session", "assistant", "tool", "user", "subagent", "hook", "skill", "system", "abort", "permission")


def looks_like(objects: Iterable[dict[str, Any]]) -> bool:
    """Say whether these first lines are events of Copilot CLI."""
    kinds = ("session.start", "session.resume", *_SEEN)
    return any(row.get("type") in kinds and isinstance(row.get("data"), dict) for row in objects)


def _result(data: dict[str, Any], report: ReadReport) -> Message:
    """The result of a tool as the model was sent it, else the error."""
    content = object_of(data, "result").get("content")
    text = json_text(object_of(data, "error").get("message") if content is None else content, report.notes)
    return Message("tool", text, tool_call_id=text_of(data, "toolCallId") or None)


def _message(kind: str, data: dict[str, Any], report: ReadReport) -> Message:
    if kind == "tool.execution_complete":
        return _result(data, report)
    text = json_text(data.get("content"), report.notes)
    if kind == "system.message":
        return Message("system", text)
    if kind == "user.message":
        report.notes["attachments"] += len(objects_of(data, "attachments"))
        return Message("user", text_of(data, "transformedContent") or text)
    requests = objects_of(data, "toolRequests")
    calls = [tool_call(r.get("toolCallId"), r.get("name"), r.get("arguments"), report.notes) for r in requests]
    return Message("assistant", text, tuple(calls), reasoning=text_of(data, "reasoningText"))


class _Session:
    """Takes in the events, one after the other."""

    def __init__(self, report: ReadReport) -> None:
        self.report = report
        self.contexts = {"": [Context()]}
        self.lost: list[str] = []
        self.part = ""
        """The API call that the last message is a part of: a long answer may be written in several events."""

    def take(self, line: int, event: dict[str, Any]) -> None:
        kind, data = text_of(event, "type"), object_of(event, "data")
        agent = text_of(event, "agentId") or text_of(data, "parentToolCallId")
        context = self.contexts.setdefault(agent, [Context(agent)])[-1]
        if kind in _SEEN and data:
            self.report.fates[line] = "no_turns"
            message = _message(kind, data, self.report)
            part = text_of(data, "apiCallId") if kind == "assistant.message" and "chunkIndex" in data else ""
            if part and part == self.part and context.entries and context.entries[-1].message.role == "assistant":
                last = context.entries.pop()
                self.report.fates[last.line] = "conversation"
                context.add(line, _joined(last.message, message), key=last.key)
            else:
                context.add(line, message, key=text_of(event, "id"))
            self.part = part
            return
        known = kind.split(".")[0] in _FAMILIES
        self.report.fates[line] = "event" if known else "unknown_type"
        if kind == "abort":
            self._abort(context)
        elif kind == "session.snapshot_rewind":
            self._rewind(context, text_of(data, "upToEventId"))
        elif kind == "session.truncation":
            self.report.notes["truncations_not_followed"] += 1
        elif kind == "session.compaction_complete" and data.get("success") is True:
            self._compact(line, agent, text_of(data, "summaryContent"))

    def _abort(self, context: Context) -> None:
        """Mark the last turn where the user stopped it: it waits for a result that will not come."""
        answered = {e.message.tool_call_id for e in context.entries if e.message.role == "tool"}
        last = next((e for e in reversed(context.entries) if e.message.role == "assistant"), None)
        if last and any(call.id not in answered for call in last.message.tool_calls):
            last.message = replace(last.message, status=last.message.status or INTERRUPTED.key)

    def _rewind(self, context: Context, event: str) -> None:
        """Take back an event and all after it."""
        start = next((i for i, e in enumerate(context.entries) if event and e.key == event), len(context.entries))
        for entry in context.entries[start:]:
            self.report.fates[entry.line] = "abandoned"
            if entry.message.role == "assistant" and entry.message.status != "repeated":
                self.lost.append(entry.key or f"line:{entry.line}")
        del context.entries[start:]

    def _compact(self, line: int, agent: str, summary: str) -> None:
        """Begin a context with the system prompts and the summary."""
        self.report.notes["compactions"] += 1
        kept = [e for e in self.contexts[agent][-1].entries if e.message.role == "system"]
        self.contexts[agent].append(Context(agent, kept))
        if summary.strip():
            self.contexts[agent][-1].add(line, Message("user", summary))


def _joined(first: Message, second: Message) -> Message:
    """Join two parts of one answer."""
    return replace(
        first,
        content="\n".join(t for t in (first.content, second.content) if t.strip()),
        tool_calls=(*first.tool_calls, *second.tool_calls),
        reasoning="\n".join(t for t in (first.reasoning, second.reasoning) if t),
    )


def read(path: Path) -> FileSessions:
    """Read one `events.jsonl` of Copilot CLI; `report.fates` says what became of every line."""
    report = ReadReport()
    session = _Session(report)
    session_id, models = "", set()
    for line, event in numbered_objects(path, report):
        data = object_of(event, "data")
        session_id = session_id or (text_of(data, "sessionId") if event.get("type") == "session.start" else "")
        models.add(text_of(data, "model"))
        session.take(line, event)
    session_id = session_id or (name_of(path.parent) if path.name.startswith("events.") else stem_of(path))
    for key in session.lost:
        report.lost_turns.append(Rejection(f"{session_id}/abandoned-{key}", session_id, None, ABANDONED_BRANCH.key))
    contexts = [context for chain in session.contexts.values() for context in chain]
    return sessions_of(contexts, path, report, FORMAT, session_id, session_id, models)
