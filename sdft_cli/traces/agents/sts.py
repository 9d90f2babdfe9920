"""The Hub's Session Trace Simple Format: a header line that names its `harness`, then one message per line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sdft_cli.records import Message
from sdft_cli.traces.agents.calls import json_text, tool_call
from sdft_cli.traces.agents.log import Context, numbered_objects, sessions_of
from sdft_cli.traces.fields import object_of, objects_of, stem_of, text_of
from sdft_cli.traces.types import FileSessions, ReadReport

FORMAT = "sts"


def looks_like(objects: Iterable[dict[str, Any]]) -> bool:
    """Say whether these first lines have the header of the format; Pi's header names no harness."""
    return any(row.get("type") == "session" and isinstance(row.get("harness"), str) for row in objects)


def _message(raw: dict[str, Any], report: ReadReport) -> Message | None:
    """Return a message, or None if its role is unknown."""
    role, text = raw.get("role"), json_text(raw.get("content"), report.notes)
    if role == "tool":
        return Message("tool", text, tool_call_id=text_of(raw, "toolCallId") or None)
    if role == "assistant":
        functions = [(call.get("id"), object_of(call, "function")) for call in objects_of(raw, "toolCalls")]
        calls = [tool_call(name, f.get("name"), f.get("arguments"), report.notes) for name, f in functions]
        return Message("assistant", text, tuple(calls), reasoning=text_of(raw, "reasoningContent"))
    return Message("system" if role == "system" else "user", text) if role in ("system", "user") else None


def read(path: Path) -> FileSessions:
    """Read one session; `report.fates` says what became of every line."""
    report, context = ReadReport(), Context()
    header: dict[str, Any] = {}
    models = set()
    for line, data in numbered_objects(path, report):
        raw = object_of(data, "message")
        message = _message(raw, report) if data.get("type") == "message" else None
        if message is not None:
            models.add(text_of(raw, "model"))
            context.add(line, message)
        else:
            report.fates[line] = "session" if data.get("type") == "session" else "unknown_type"
            header = header or (data if data.get("type") == "session" else {})
    session_id = text_of(header, "id") or stem_of(path)
    return sessions_of([context], path, report, FORMAT, session_id, session_id, models)
