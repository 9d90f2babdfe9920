"""The plain format: one JSON object per line (or row) with `messages` and, perhaps, `tools` and `system`.

Messages may be in OpenAI's style or hold Anthropic's content blocks. Each of these columns may be JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from sdft_cli.records import Message, Session, ToolCall, ToolSchema
from sdft_cli.records.on_disk import OnDisk
from sdft_cli.traces.agents.blocks import expanded, system_messages
from sdft_cli.traces.fields import DOCUMENT, IMAGE, parsed
from sdft_cli.traces.rows import Rows
from sdft_cli.traces.tools import none_offered
from sdft_cli.traces.types import FileSessions, ReadReport

FORMAT = "messages"
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


def looks_like(objects: Iterable[dict[str, Any]]) -> bool:
    """Say whether these first objects are conversations."""
    return any(_is_conversation(obj.get("messages")) for obj in objects)


def _is_conversation(value: Any) -> bool:
    """Say whether this is a list of messages; as JSON text, only if a message in it has a role."""
    if not isinstance(value, str):
        return isinstance(value, list)
    if not value.lstrip().startswith("["):
        return False
    try:
        found = parsed(value)
    except (ValueError, RecursionError):
        return False
    return any(isinstance(message, dict) and str(message.get("role")) in _ROLES for message in found)


def _loads(value: Any) -> Any:
    """Some exports keep `messages`, `tools` or `arguments` as JSON text."""
    return parsed(value) if isinstance(value, str) else value


def _text(content: Any, report: ReadReport) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, dict) and part.get("type") in ("text", "input_text", "output_text"):
            parts.append(str(part.get("text") or ""))
        elif isinstance(part, str):
            parts.append(part)
        elif isinstance(part, dict) and "image" in str(part.get("type")):
            report.notes["images"] += 1
            parts.append(IMAGE)
        elif isinstance(part, dict) and part.get("type") == "document":
            report.notes["documents"] += 1
            parts.append(DOCUMENT)
        else:
            report.notes["unknown_blocks"] += 1
    return "\n".join(parts)


def _tool_call(raw: dict[str, Any], name: str) -> ToolCall:
    function = raw.get("function") or raw
    arguments = function.get("arguments")
    value = _loads(arguments) if arguments not in (None, "") else {}
    if not isinstance(value, dict) or not isinstance(function.get("name"), str):
        raise ValueError("a tool call has no name or its arguments are not an object")
    return ToolCall(str(raw.get("id") or name), function["name"], json.dumps(value, ensure_ascii=False))


def _message(raw: dict[str, Any], index: int, report: ReadReport) -> Message:
    role = _ROLES.get(str(raw.get("role")))
    if role is None:
        raise ValueError(f"role {raw.get('role')!r} is unknown")
    return Message(
        role=role,  # type: ignore[arg-type]  # checked against _ROLES above
        content=_text(raw.get("content"), report),
        tool_calls=tuple(_tool_call(c, f"call_{index}_{n}") for n, c in enumerate(raw.get("tool_calls") or ())),
        tool_call_id=raw.get("tool_call_id"),
        name=raw.get("name"),
        reasoning=str(raw.get("reasoning_content") or raw.get("reasoning") or ""),
    )


def _tool(raw: dict[str, Any]) -> ToolSchema:
    function = raw.get("function") or raw
    parameters = function.get("parameters") or function.get("input_schema") or {"type": "object", "properties": {}}
    return ToolSchema(
        str(function["name"]),
        str(function.get("description") or ""),
        json.dumps(_loads(parameters), ensure_ascii=False),
        "given",
    )


def tools_of(raw: Iterable[Any]) -> tuple[ToolSchema, ...]:
    """Return the function tools of a list; entries without a name (a provider's own tools) are no functions."""
    named = (tool.get("function") or tool for tool in raw if isinstance(tool, dict))
    return tuple(_tool(tool) for tool in named if isinstance(tool, dict) and isinstance(tool.get("name"), str))


def session_of(row: dict[str, Any], name: str, report: ReadReport) -> Session:
    """Turn a conversation object into a session; raises ValueError, TypeError or KeyError where its shape is wrong."""
    given = [*system_messages(row.get("system")), *expanded(list(_loads(row["messages"])))]
    messages = tuple(_message(raw, i, report) for i, raw in enumerate(given))
    listed = _loads(row.get("tools"))
    tools = tuple(_tool(raw) for raw in listed or ())
    session_id = str(row.get("session_id") or row.get("id") or name)
    metadata = {"format": FORMAT, "file": name, **none_offered(listed)}
    return Session(session_id, messages, tools, group=session_id, metadata=metadata)


def sessions_of_rows(
    rows: Rows, build: Callable[[dict[str, Any], str, ReadReport], Session | list[Session]]
) -> FileSessions:
    """Turn named rows into sessions, one or more each; a row that is none is counted as broken, with its name.

    Sessions lie on disk: a file of rows may be larger than memory.
    """
    report = ReadReport()
    sessions = OnDisk[Session]()
    seen: dict[str, int] = {}
    for name, row in rows:
        try:
            if row is None:
                raise ValueError("not a JSON object")
            built = build(row, name, report)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            report.lines["broken"] += 1
            report.broken.append(f"{name} ({error})")
            continue
        report.lines["conversation"] += 1
        for session in built if isinstance(built, list) else [built]:
            seen[session.session_id] = seen.get(session.session_id, 0) + 1
            if seen[session.session_id] > 1:
                session = replace(session, session_id=f"{session.session_id}~{seen[session.session_id]}")
            if session.assistant_turns():
                sessions.append(session)
            else:
                report.notes["contexts_without_turns"] += 1
    return FileSessions(sessions, report)
