"""Agents whose sessions are recognised and not read: each by what only its files have.

A file that looks like another agent's session must not be read as one that it resembles, so these are asked first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sdft_cli.traces.fields import object_of, objects_of, text_of

Signature = Callable[[dict[str, Any]], bool]

READ_AGENTS = (
    *("Claude Code", "Codex", "Copilot CLI", "Cursor", "Droid", "Gemini CLI", "Hermes", "OpenClaw", "OpenCode"),
    *("Pi", "Qwen Code"),
)
"""The agents whose sessions are read, for the sentence that refuses another's."""
_SESSION_NAME = re.compile(r"session-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def _blocks(row: dict[str, Any], holder: str) -> list[dict[str, Any]]:
    return objects_of(object_of(row, holder), "content") if holder else objects_of(row, "content")


def _is_iflow(row: dict[str, Any]) -> bool:
    """It writes Claude Code's lines, with its own session names and with the results of Gemini's API inside blocks."""
    if not (isinstance(row.get("uuid"), str) and row.get("type") in ("user", "assistant")):
        return False
    results = [object_of(block, "content") for block in _blocks(row, "message") if block.get("type") == "tool_result"]
    gemini = any("functionResponse" in result or "responseParts" in result for result in results)
    return gemini or _SESSION_NAME.fullmatch(text_of(row, "sessionId")) is not None


def _is_cline(row: dict[str, Any]) -> bool:
    """What it shows (`ui_messages.json`), or what it sent (`api_conversation_history.json`)."""
    if row.get("type") in ("say", "ask"):
        return row["type"] in row and "ts" in row
    texts = [text_of(block, "text") for block in _blocks(row, "")]
    return row.get("role") == "user" and any("<environment_details>" in text for text in texts)


def _is_openhands(row: dict[str, Any]) -> bool:
    kinds = isinstance(row.get("action"), str) or isinstance(row.get("observation"), str)
    return kinds and row.get("source") in ("agent", "user", "environment") and "timestamp" in row


def _is_goose(row: dict[str, Any]) -> bool:
    blocks = [b for message in (row, *objects_of(row, "conversation")) for b in _blocks(message, "")]
    return any(b.get("type") in ("toolRequest", "toolResponse") and "id" in b for b in blocks)


SIGNATURES: dict[str, Signature] = {
    "iFlow": _is_iflow,
    "Amp": lambda row: text_of(row, "id").startswith("T-") and "v" in row and isinstance(row.get("messages"), list),
    "Cline, Roo Code or Kilo Code": _is_cline,
    "Continue": lambda row: isinstance(row.get("history"), list) and "workspaceDirectory" in row,
    "Goose": _is_goose,
    "Kimi CLI": lambda row: row.get("role") in ("_checkpoint", "_usage", "_system_prompt"),
    "OpenHands": _is_openhands,
    "Copilot Chat": lambda row: isinstance(row.get("requests"), list) and "responderUsername" in row,
    "Copilot CLI before it wrote events.jsonl": lambda row: (
        isinstance(row.get("chatMessages"), list) and isinstance(row.get("timeline"), list)
    ),
    "OpenCode's storage folder (export it with `opencode export`)": lambda row: (
        text_of(row, "sessionID").startswith("ses_") and text_of(row, "id").startswith(("msg_", "prt_"))
    ),
    "Gemini's API (a checkpoint of Gemini CLI, perhaps)": lambda row: (
        row.get("role") in ("user", "model") and isinstance(row.get("parts"), list) and not row.get("uuid")
    ),
    "claude.ai": lambda row: isinstance(row.get("chat_messages"), list),
    "ChatGPT": lambda row: isinstance(row.get("mapping"), dict) and "current_node" in row,
}
"""Agent -> whether an object of a file is its own."""


def agent_of(objects: Iterable[dict[str, Any]]) -> str | None:
    """Name the agent that is not read and wrote these first objects of a file, or None."""
    rows: Sequence[dict[str, Any]] = list(objects)
    return next((agent for agent, is_its in SIGNATURES.items() if any(is_its(row) for row in rows)), None)


def refusal(name: str, agent: str) -> str:
    """Return the sentence that refuses a file of such an agent."""
    return f"{name} is a session of {agent}, which is not read: give sessions of {_list(READ_AGENTS)}."


def _list(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
