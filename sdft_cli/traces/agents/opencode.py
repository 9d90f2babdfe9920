"""What `opencode export` writes: one JSON object with the session's `info` and its `messages`, each of `parts`.

A message with an error is in no context, unless the user stopped it: OpenCode does not send it back. After a
compaction the model sees the prompt that asked for it, the summary, and what follows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sdft_cli.records import Message, Rejection, Session
from sdft_cli.records.reasons import ABANDONED_BRANCH, API_ERROR, INTERRUPTED, TRUNCATED
from sdft_cli.traces.agents.calls import pair_calls
from sdft_cli.traces.agents.opencode_parts import prompt_of, turns_of
from sdft_cli.traces.fields import object_of, objects_of, text_of
from sdft_cli.traces.types import ReadReport

FORMAT = "opencode"


def looks_like(objects: Iterable[dict[str, Any]]) -> bool:
    """Say whether these first objects are sessions exported by OpenCode."""
    return any(
        isinstance(row.get("info"), dict)
        and any(
            isinstance(m.get("info"), dict) and isinstance(m.get("parts"), list) for m in objects_of(row, "messages")
        )
        for row in objects
    )


def _failure(info: dict[str, Any], parts: list[dict[str, Any]]) -> tuple[str | None, bool]:
    """Return why a message is no reference, and whether OpenCode keeps it: only where the user stopped its writing."""
    name = text_of(object_of(info, "error"), "name")
    if not isinstance(info.get("error"), dict):
        return (TRUNCATED.key if info.get("finish") == "length" else None), True
    if name == "MessageAbortedError":
        return INTERRUPTED.key, any(part.get("type") not in ("step-start", "reasoning") for part in parts)
    return (TRUNCATED.key if name == "MessageOutputLengthError" else API_ERROR.key), False


def _contexts(row: dict[str, Any], base: str, report: ReadReport) -> list[list[Message]]:
    if len(objects_of(row, "messages")) != len(row["messages"]):
        raise ValueError("a message is no JSON object")
    contexts: list[list[Message]] = [[]]
    prompt: Message | None = None
    """The prompt that asked for a compaction: the next context begins with it."""
    reverted, gone = text_of(object_of(object_of(row, "info"), "revert"), "messageID"), False
    for number, entry in enumerate(objects_of(row, "messages")):
        info, parts = object_of(entry, "info"), objects_of(entry, "parts")
        name = text_of(info, "id") or str(number)
        gone = gone or bool(reverted and name == reverted)
        if info.get("role") == "user" and not gone:
            message = prompt_of(parts, report)
            prompt = message if any(part.get("type") == "compaction" for part in parts) else None
            contexts[-1] += [message] if message.content.strip() else []
        elif info.get("role") == "assistant":
            status, kept = _failure(info, parts)
            if gone or not kept:
                reason = ABANDONED_BRANCH.key if gone else str(status)
                report.lost_turns.append(Rejection(f"{base}/lost-{name}", base, None, reason))
            elif info.get("summary") is True:
                report.notes["compactions"] += 1
                contexts.append([prompt] if prompt else [])
                contexts[-1] += turns_of(parts, report, "repeated")
            else:
                contexts[-1] += turns_of(parts, report, status)
        elif not gone:
            report.notes["unknown_roles"] += 1
    return contexts


def sessions_of(row: dict[str, Any], name: str, report: ReadReport) -> list[Session]:
    """Turn an exported session into one session per context that the model saw."""
    info = object_of(row, "info")
    base = text_of(info, "id") or name
    group = text_of(info, "parentID") or base
    models = sorted({text_of(object_of(m, "info"), "modelID") for m in objects_of(row, "messages")} - {""})
    sessions = []
    for number, messages in enumerate(_contexts(row, base, report), start=1):
        paired = tuple(m for m in pair_calls(messages, report.notes) if m is not None)
        metadata = {"format": FORMAT, "file": name, "models": models, "context": number}
        sessions.append(Session(base if number == 1 else f"{base}#{number}", paired, group=group, metadata=metadata))
    return sessions
