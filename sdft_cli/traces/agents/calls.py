"""What all agents' messages need: an id of its own for each call, its call for each result, one system message."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sdft_cli.records import Message, ToolCall
from sdft_cli.traces.fields import parsed


def tool_call(call_id: Any, name: Any, arguments: Any, notes: Counter[str]) -> ToolCall:
    """Return a call as it was recorded.

    Arguments may be an object or its JSON text. Another text is what a tool without a schema was given: it becomes
    `{"input": text}`, and is counted. Anything else cannot be arguments; it is counted and left out.
    """
    value = arguments
    if isinstance(value, str) and value.strip():
        try:
            value = parsed(value)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            notes["text_arguments"] += 1
            value = {"input": arguments}
    elif value is None or value == "":
        value = {}
    if not isinstance(value, dict):
        notes["non_object_arguments"] += 1
        value = {}
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        notes["too_deep_arguments"] += 1
        text = "{}"
    return ToolCall(call_id if isinstance(call_id, str) else "", name if isinstance(name, str) else "", text)


def json_text(value: Any, notes: Counter[str]) -> str:
    """Return a text as it is, nothing as "", and any other value as JSON text."""
    if value is None or isinstance(value, str):
        return value or ""
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        notes["too_deep_results"] += 1
        return ""


def pair_calls(messages: Sequence[Message], notes: Counter[str]) -> list[Message | None]:
    """Give every call an id of its own and every result the id and name of its call.

    A result is matched by id, else by the name of the oldest open call, since some formats give calls no ids. In place
    of a result without a call there is None; it is counted.
    """
    taken: Counter[str] = Counter()
    waiting: list[tuple[str, ToolCall]] = []
    paired: list[Message | None] = []
    for message in messages:
        if message.role == "tool":
            raw = message.tool_call_id
            match = next((w for w in waiting if w[0] == raw), None)
            match = match or next((w for w in waiting if w[1].name == message.name), None)
            if match is None:
                notes["orphan_tool_results"] += 1
                paired.append(None)
                continue
            waiting.remove(match)
            paired.append(replace(message, tool_call_id=match[1].id, name=match[1].name, status=None))
            continue
        calls = []
        for call in message.tool_calls:
            name = call.id or "call"
            taken[name] += 1
            calls.append(replace(call, id=name if taken[name] == 1 else f"{name}~{taken[name]}"))
            waiting.append((call.id, calls[-1]))
        paired.append(replace(message, tool_calls=tuple(calls)))
    notes["unanswered_calls"] += len(waiting)
    return paired


def one_system(messages: Sequence[Message], notes: Counter[str]) -> list[Message]:
    """Join the leading system messages into one, since chat templates take one; count those that were joined."""
    leading = next((i for i, m in enumerate(messages) if m.role != "system"), len(messages))
    if leading < 2:
        return list(messages)
    notes["joined_system_messages"] += leading
    return [Message("system", "\n\n".join(m.content for m in messages[:leading])), *messages[leading:]]
