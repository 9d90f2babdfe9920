"""The lines of a Claude Code file, and what each one is.

`docs/claude-code-sessions.md` says why each kind of line is treated as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdft_cli.traces.claude_code.attachments import (
    SNAPSHOT,
    Block,
    attachment_blocks,
    blocks_of,
    is_known,
    rendered_blocks,
    unreadable_renderings,
)
from sdft_cli.traces.fields import name_of, object_of, text_of
from sdft_cli.traces.rows import read_lines
from sdft_cli.traces.types import ReadReport

CALLS = ("tool_use", "server_tool_use", "mcp_tool_use")
"""Blocks that are calls of a tool."""

_INTERRUPTS = ("[Request interrupted by user]", "[Request interrupted by user for tool use]")
_REFUSAL = "The user doesn't want to proceed with this tool use."
"""How the result of a call begins that the user refused; the user's own words may follow."""
_KIND_OF_SYSTEM_SUBTYPE = {
    "compact_boundary": "boundary",
    "microcompact_boundary": "microcompact",
    "stop_hook_summary": "hook_summary",
}
_KIND_OF_OTHER_TYPE = {
    "progress": "progress",
    "summary": "summary",
    "queue-operation": "queue",
    "file-history-snapshot": "snapshot",
    "attribution-snapshot": "snapshot",
    "content-replacement": "replacement",
    **dict.fromkeys(
        (
            *("last-prompt", "pr-link", "custom-title", "ai-title", "tag", "mode", "permission-mode", "task-summary"),
            *("agent-name", "agent-color", "agent-setting", "worktree-state", "speculation-accept", "result"),
            *("atis-latch", "bridge-session", "file-history-delta", "cost-state", "continued-in", "relocated"),
            *("fork-context-ref", "started", "launched", "failed"),
        ),
        "bookkeeping",
    ),
}
_KNOWN_TYPES = frozenset({"user", "assistant", "system", "attachment", "saved_hook_context", *_KIND_OF_OTHER_TYPE})


def looks_like(objects: Iterable[dict[str, Any]]) -> bool:
    """Say whether these first lines of a file are Claude Code's."""
    return any(
        text_of(obj, "type") in _KNOWN_TYPES
        and ("uuid" in obj or "leafUuid" in obj or "sessionId" in obj or "snapshot" in obj)
        for obj in objects
    )


@dataclass(slots=True)
class Line:
    """One line of a file. `kind` says what it is, see `kind_of_line`.

    `uuid` is made up from the line number where the line has none. `by_order`: the format of the line has no
    `parentUuid`, so its parent is the line before it.
    """

    number: int
    data: dict[str, Any]
    kind: str
    uuid: str
    parent: str | None
    by_order: bool = False
    repeats: bool = False
    """Another file of the source holds the same line, or an earlier place of this one."""

    @property
    def message(self) -> dict[str, Any]:
        return object_of(self.data, "message")

    @property
    def blocks(self) -> list[Block]:
        """What the model saw of this line."""
        if self.kind in ("boundary", "microcompact", "prompt"):
            return []  # their words are for the screen
        kind = self.data.get("type")
        if kind == "attachment":
            return attachment_blocks(self.data)
        if kind in ("system", "queue-operation", "saved_hook_context"):
            return blocks_of(self.data.get("content"))
        return blocks_of(self.message.get("content"))

    @property
    def agent(self) -> str | None:
        """The key of the subagent that the line belongs to; "" where the line does not name it; None for no agent."""
        if self.data.get("isSidechain") is True:
            return text_of(self.data, "agentId")
        return text_of(self.data, "parent_tool_use_id") or None

    def is_interrupt(self) -> bool:
        """Say whether the line marks the point at which the user stopped the agent."""
        if text_of(self.data, "interruptedMessageId"):
            return True
        texts = (b.get("content") if b.get("type") == "tool_result" else b.get("text") for b in self.blocks)
        return any(isinstance(t, str) and t.strip() in _INTERRUPTS for t in texts)

    def refused_calls(self) -> list[str]:
        """Return the ids of the calls that the user refused, by their results."""
        failed = [b for b in self.blocks if b.get("type") == "tool_result" and b.get("is_error") is True]
        return [text_of(b, "tool_use_id") for b in failed if _text(b.get("content")).lstrip().startswith(_REFUSAL)]

    def says_truncated(self) -> bool:
        """Say whether an API error reports that the answer before it hit the output limit."""
        errors = {text_of(self.data, "apiError"), text_of(self.data, "error")}
        return "max_output_tokens" in errors or any("output token maximum" in text_of(b, "text") for b in self.blocks)


def _text(content: Any) -> str:
    return "".join(text_of(block, "text") for block in blocks_of(content))


def kind_of_line(data: dict[str, Any]) -> str:
    """Decide what a line is: here, and only here, a line gets its kind. A line that is no JSON object has none.

    - `assistant`: a part of a turn. In a context, or on an abandoned branch.
    - `user`: what the model was shown beside its turns: prompts, tool results, echoes of local commands, attachments
      with a text of their own. In a context, or on an abandoned branch.
    - `prompt`: the system prompt and the tools, or one of them.
    - `boundary`, `microcompact`: a compaction; a new context begins.
    - `api_error`: stands where a turn should be; in no context, and the turn counts as lost.
    - `queue`: a prompt that waits; shown if the running turn absorbed it.
    - `replacement`: what was shown instead of large tool results; takes their place.
    - `attachment` (without text), `virtual`, `transcript_only`, `empty`, `progress`, `summary`, `hook_summary`,
      `system`, `snapshot`, `bookkeeping`, `unknown_type`: the model did not see them; counted, and walked through
      where they carry the chain.
    """
    kind = text_of(data, "type")
    if kind in ("assistant", "user"):
        return _kind_of_message(data, kind)
    if kind == "system":
        subtype = text_of(data, "subtype")
        if subtype == "local_command" and text_of(data, "content"):
            return "user"  # echoes of local commands reach the model, whichever type of line holds them
        if subtype == "init" and isinstance(data.get("tools"), list):
            return "prompt"
        return _KIND_OF_SYSTEM_SUBTYPE.get(subtype, "system")
    if kind == "attachment":
        if text_of(object_of(data, "attachment"), "type") == SNAPSHOT:
            return "prompt"
        return "user" if attachment_blocks(data) else "attachment"
    if kind == "saved_hook_context":
        return "user" if blocks_of(data.get("content")) else "attachment"
    return _KIND_OF_OTHER_TYPE.get(kind, "unknown_type")


def _kind_of_message(data: dict[str, Any], kind: str) -> str:
    message = object_of(data, "message")
    if data.get("isVirtual") is True:
        return "virtual"
    if data.get("queueTranscriptOnly") is True and data.get("isCompactSummary") is not True:
        return "transcript_only"
    if not message or (kind == "assistant" and not blocks_of(message.get("content"))):
        return "empty"
    return "api_error" if kind == "assistant" and data.get("isApiErrorMessage") is True else kind


def _unknown(data: dict[str, Any], kind: str) -> str | None:
    """Name the type of a line, or of its attachment, if this version does not know it."""
    if kind == "unknown_type":
        return f"line type: {text_of(data, 'type') or '(none)'}"
    attachment = text_of(object_of(data, "attachment"), "type") if kind in ("attachment", "user") else ""
    if attachment and not is_known(attachment) and rendered_blocks(data) is None:
        return f"attachment type: {attachment}"
    return None


def read(path: Path, report: ReadReport) -> list[Line]:
    """Read the lines of a file in order.

    `report.fates` gets the lines that are no JSON object (`broken`) and those that repeat the `uuid` of an earlier
    line of the file (`duplicate`); every other line is returned. A line that comes again with another parent is a
    second place of the same message: lines that name its `uuid` from then on follow that place.
    """
    lines: list[Line] = []
    places: dict[str, list[tuple[Any, set[str | None]]]] = {}
    renamed: dict[str, str] = {}
    compactions, said_at = 0, dict[str, int]()
    for number, data in read_lines(path):
        if data is None:
            report.fates[number] = "broken"
            report.broken.append(f"{name_of(path)}:{number}")
            continue
        uuid, parent = text_of(data, "uuid"), text_of(data, "parentUuid") or None
        parent = renamed.get(parent, parent) if parent else None
        before = places.setdefault(uuid, []) if uuid else []
        parents = next((found for message, found in before if message == data.get("message")), None)
        if parents is not None and (parent in parents or "parentUuid" not in data):
            report.fates[number] = "duplicate"
            continue
        line = Line(number, data, kind_of_line(data), uuid or f"line:{number}", parent, "parentUuid" not in data)
        if before:
            line.uuid = renamed[uuid] = f"{uuid}@{number}"
            line.repeats = parents is not None
        compactions += line.kind == "boundary"
        if uuid and data.get("type") == "saved_hook_context":
            if said_at.get(uuid) == compactions:
                line.kind = "attachment"  # the place is another one, the words were said
            said_at[uuid] = compactions
        if parents is None:
            before.append((data.get("message"), {parent}))
        else:
            parents.add(parent)
        _note(line, report)
        lines.append(line)
    return lines


def _note(line: Line, report: ReadReport) -> None:
    """Count what this version does not know or cannot read in a line."""
    unknown = _unknown(line.data, line.kind)
    if unknown:
        report.unknown[unknown] += 1
    report.notes["unreadable_rendered"] += unreadable_renderings(line.data)


def version_of(line: Line) -> tuple[int, ...]:
    """Return the version that wrote a line, as numbers; () if it does not say."""
    parts = text_of(line.data, "version").split("-")[0].split(".")
    return tuple(map(int, parts)) if all(p.isascii() and p.isdigit() and len(p) < 9 for p in parts) else ()


def group_of(lines: Iterable[Line], default: str) -> str:
    """Return the id of the session that these lines belong to."""
    return next((n for x in lines for k in ("sessionId", "session_id") if (n := text_of(x.data, k))), default)


def chains(lines: list[Line]) -> dict[str, list[Line]]:
    """Split a file into the main chain (key "") and one chain per subagent."""
    by_agent: dict[str, list[Line]] = {}
    agent_of: dict[str, str] = {}
    for line in lines:
        key = line.agent
        if key is None:
            key = ""
        else:
            key = key or agent_of.get(line.parent or "", line.uuid)
            agent_of[line.uuid] = key
        by_agent.setdefault(key, []).append(line)
    return by_agent
