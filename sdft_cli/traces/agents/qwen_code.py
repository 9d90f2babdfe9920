"""Qwen Code's session files: a tree of lines like Claude Code's, whose messages are `Content`s of Gemini's API.

The context of a turn is the path of parents above it. `chat_compression` holds the history that the model saw after
it, so a new context begins; `agent_bootstrap` holds what a subagent was given to begin with.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdft_cli.records import Message, Rejection
from sdft_cli.records.reasons import ABANDONED_BRANCH
from sdft_cli.traces.agents.log import Context, numbered_objects, sessions_of
from sdft_cli.traces.agents.parts import parts_of
from sdft_cli.traces.fields import object_of, objects_of, stem_of, text_of
from sdft_cli.traces.types import FileSessions, ReadReport

FORMAT = "qwen-code"
_HISTORIES = {"chat_compression": "compressedHistory", "agent_bootstrap": "history"}
_ONLY_HERE = frozenset({*_HISTORIES, "ui_telemetry", "slash_command", "at_command", "attribution_snapshot"})
"""Subtypes of `system` lines that Claude Code does not write."""
_TYPES = ("user", "assistant", "tool_result")


def looks_like(objects: Iterable[dict[str, Any]]) -> bool:
    """Say whether these first lines are Qwen Code's; they have Claude Code's keys, so it is asked before that."""

    def is_qwen(row: dict[str, Any]) -> bool:
        if not (isinstance(row.get("uuid"), str) and isinstance(row.get("sessionId"), str)):
            return False
        message = row.get("message")
        if row.get("type") == "system":
            return text_of(row, "subtype") in _ONLY_HERE
        return row.get("type") in _TYPES and isinstance(message, dict) and isinstance(message.get("parts"), list)

    return any(is_qwen(row) for row in objects)


@dataclass(frozen=True)
class _Line:
    number: int
    data: dict[str, Any]

    @property
    def uuid(self) -> str:
        return text_of(self.data, "uuid") or f"line:{self.number}"

    @property
    def history(self) -> list[dict[str, Any]] | None:
        """The history that the line sets, if it sets one."""
        key = _HISTORIES.get(text_of(self.data, "subtype"))
        payload = object_of(self.data, "systemPayload")
        return objects_of(payload, key) if key and isinstance(payload.get(key), list) else None


def _path(lines: list[_Line], report: ReadReport) -> list[_Line]:
    """Return the lines on the path of parents from the last line; a missing parent is the line before, counted."""
    above: dict[str, int] = {}
    parents: list[int] = []
    for position, line in enumerate(lines):
        parent = text_of(line.data, "parentUuid")
        missing = bool(parent) and parent not in above
        report.notes["repaired_links"] += missing
        follows = missing or "parentUuid" not in line.data
        parents.append(position - 1 if follows else above[parent] if parent else -1)
        if line.uuid in above:  # a message that was written in two lines
            parents[-1] = above[line.uuid]
        above[line.uuid] = position
    kept: list[_Line] = []
    current = len(lines) - 1
    while current >= 0:
        kept.append(lines[current])
        current = parents[current]
    return kept[::-1]


def _content_messages(content: dict[str, Any], report: ReadReport, status: str | None = None) -> list[Message]:
    """Write a `Content` down: a turn of the model, or results and a prompt."""
    found = parts_of(content.get("parts"), report.notes)
    if content.get("role") == "model":
        reasoning = "\n".join(found.thoughts)
        return [Message("assistant", found.text, tuple(found.calls), reasoning=reasoning, status=status)]
    return [*found.results, *([Message("user", found.text)] if found.text.strip() else [])]


def _contexts(lines: list[_Line], agent: str, report: ReadReport) -> list[Context]:
    contexts = [Context(agent)]
    for line in lines:
        history = line.history
        if history is not None:
            report.fates[line.number] = text_of(line.data, "subtype")
            if contexts[-1].entries:
                report.notes["compactions"] += 1
                contexts.append(Context(agent))
            for content in history:
                contexts[-1].add(line.number, *_content_messages(content, report, "repeated"))
        elif line.data.get("type") in _TYPES and text_of(line.data, "subtype") != "realtime_message":
            message = object_of(line.data, "message")
            report.fates[line.number] = "no_turns" if message else "empty"
            contexts[-1].add(line.number, *(_content_messages(message, report) if message else ()), key=line.uuid)
        else:
            report.fates[line.number] = "system" if line.data.get("type") in ("system", *_TYPES) else "unknown_type"
    return contexts


def read(path: Path) -> FileSessions:
    """Read one session file of Qwen Code; `report.fates` says what became of every line."""
    report = ReadReport()
    chains: dict[str, list[_Line]] = {}
    for number, data in numbered_objects(path, report):
        agent = (text_of(data, "agentId") or "unnamed") if data.get("isSidechain") is True else ""
        chains.setdefault(agent, []).append(_Line(number, data))
    everything = [line for chain in chains.values() for line in chain]
    session_id = next((name for line in everything if (name := text_of(line.data, "sessionId"))), stem_of(path))
    contexts: list[Context] = []
    for agent, lines in chains.items():
        kept = _path(lines, report)
        contexts += _contexts(kept, agent, report)
        on_path = {line.number for line in kept}
        for line in lines:
            if line.number not in on_path:
                report.fates[line.number] = "abandoned"
                if line.data.get("type") == "assistant" and object_of(line.data, "message"):
                    name = f"{session_id}/abandoned-{line.uuid}"
                    report.lost_turns.append(Rejection(name, session_id, None, ABANDONED_BRANCH.key))
    models = {text_of(line.data, "model") for line in everything}
    return sessions_of(contexts, path, report, FORMAT, session_id, session_id, models)
