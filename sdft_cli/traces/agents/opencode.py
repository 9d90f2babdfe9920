"""What `opencode export` writes: one JSON object with the session's `info` and its `messages`, each of `parts`.

A message of the assistant holds one or more steps (calls of the model), between `step-start` parts; each step is a
turn. Where a message marks no steps, a text after a result begins a new turn, because the model had read the result.
What stands for results that never came, and for a compaction, is what OpenCode sends to the model in their place.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sdft_cli.records import Message, Rejection, Session
from sdft_cli.records.reasons import ABANDONED_BRANCH, API_ERROR, INTERRUPTED, TRUNCATED
from sdft_cli.traces.agents.calls import json_text, pair_calls, tool_call
from sdft_cli.traces.agents.log import FILE, IMAGE, object_of, objects_of, text_of
from sdft_cli.traces.types import ReadReport

FORMAT = "opencode"
INTERRUPTED_RESULT = "[Tool execution was interrupted]"
COMPACTION_PROMPT = "What did we do so far?"
SUBTASK_PROMPT = "The following tool was executed by the user"
_SHOWN_AS_TEXT = ("text/plain", "application/x-directory")
_SILENT = ("step-start", "step-finish", "snapshot", "patch", "agent", "retry")


def looks_like(objects: Iterable[dict[str, Any]]) -> bool:
    """Say whether these first objects are sessions exported by OpenCode."""
    return any(
        isinstance(row.get("info"), dict)
        and any(
            isinstance(m.get("info"), dict) and isinstance(m.get("parts"), list) for m in objects_of(row, "messages")
        )
        for row in objects
    )


def _media(part: dict[str, Any], report: ReadReport) -> str:
    image = text_of(part, "mime").startswith("image/")
    report.notes["images" if image else "documents"] += 1
    return IMAGE if image else FILE


def _prompt(parts: list[dict[str, Any]], report: ReadReport) -> Message:
    texts = []
    for part in parts:
        kind = text_of(part, "type")
        if kind == "text" and part.get("ignored") is not True:
            texts.append(text_of(part, "text"))
        elif kind == "file" and part.get("mime") not in _SHOWN_AS_TEXT:
            texts.append(_media(part, report))
        elif kind in ("compaction", "subtask"):
            texts.append(COMPACTION_PROMPT if kind == "compaction" else SUBTASK_PROMPT)
        elif kind not in ("text", "file", *_SILENT):
            report.notes["unknown_blocks"] += 1
    return Message("user", "\n".join(texts))


@dataclass
class _Step:
    """One call of the model: what it wrote, and the results of its calls."""

    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[Any] = field(default_factory=list)
    results: list[Message] = field(default_factory=list)
    cut: bool = False

    def turn(self, status: str | None) -> list[Message]:
        """Return the turn and the results of its calls."""
        text = "\n".join(t for t in self.texts if t.strip())
        status = status or (TRUNCATED.key if self.cut else None)
        reasoning = "\n".join(self.reasoning)
        return [Message("assistant", text, tuple(self.calls), reasoning=reasoning, status=status), *self.results]


def _result(part: dict[str, Any], report: ReadReport) -> str:
    state = object_of(part, "state")
    status, metadata = state.get("status"), object_of(state, "metadata")
    if status == "completed":
        report.notes["cleared_results"] += object_of(state, "time").get("compacted") is not None
        files = [_media(file, report) for file in objects_of(state, "attachments")]
        return "\n".join([json_text(state.get("output"), report.notes), *files])
    if status == "error":
        kept = metadata.get("output") if metadata.get("interrupted") is True else None
        return json_text(state.get("error") if kept is None else kept, report.notes)
    return INTERRUPTED_RESULT


def _steps(parts: list[dict[str, Any]], report: ReadReport) -> list[_Step]:
    steps = [_Step()]
    marked = any(part.get("type") == "step-start" for part in parts)
    for part in parts:
        kind = text_of(part, "type")
        if (kind == "step-start" and steps[-1] != _Step()) or (
            not marked and kind in ("text", "reasoning") and steps[-1].results
        ):
            steps.append(_Step())
        if kind == "text":
            steps[-1].texts.append(text_of(part, "text"))
        elif kind == "reasoning":
            steps[-1].reasoning.append(text_of(part, "text"))
        elif kind == "step-finish":
            steps[-1].cut = part.get("reason") == "length"
        elif kind == "tool":
            call = tool_call(part.get("callID"), part.get("tool"), object_of(part, "state").get("input"), report.notes)
            steps[-1].calls.append(call)
            steps[-1].results.append(Message("tool", _result(part, report), tool_call_id=call.id, name=call.name))
        elif kind not in _SILENT:
            report.notes["unknown_blocks"] += 1
    return [step for step in steps if step.texts or step.reasoning or step.calls]


def _turns(parts: list[dict[str, Any]], report: ReadReport, status: str | None) -> list[Message]:
    """Return the turns of a message of the assistant; what ended the message is about its last step."""
    steps = _steps(parts, report)
    report.notes["empty_messages"] += not steps
    before = "repeated" if status == "repeated" else None
    return [m for i, step in enumerate(steps, 1) for m in step.turn(status if i == len(steps) else before)]


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
            message = _prompt(parts, report)
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
                contexts[-1] += _turns(parts, report, "repeated")
            else:
                contexts[-1] += _turns(parts, report, status)
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
