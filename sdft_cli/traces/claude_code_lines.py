"""The lines of a Claude Code file: what each one is, and whether it repeats a line that was read before.

`docs/claude-code-sessions.md` says why each kind of line is treated as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from sdft_cli.traces.rows import read_lines
from sdft_cli.traces.types import ReadReport

Block = dict[str, Any]

_INTERRUPTS = ("[Request interrupted by user]", "[Request interrupted by user for tool use]")
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
        ),
        "bookkeeping",
    ),
}
_KNOWN_TYPES = frozenset({"user", "assistant", "system", "attachment", *_KIND_OF_OTHER_TYPE})
_ATTACHMENT_TEXT: dict[str, tuple[str, ...]] = {
    "queued_command": ("prompt",),
    "file": ("content", "file", "content"),
    "directory": ("content",),
    "edited_text_file": ("snippet",),
    "nested_memory": ("content", "content"),
    "plan_file_reference": ("planContent",),
    "hook_additional_context": ("content",),
    "hook_blocking_error": ("blockingError", "blockingError"),
    "hook_success": ("content",),
}
"""Where the text of an attachment stands that the model was shown. Other types hold none of their own."""
_HOOKS_SHOWN = ("SessionStart", "UserPromptSubmit")


def text_field(data: dict[str, Any], key: str) -> str:
    """Return `data[key]` if it is text, else "" (a foreign file may hold anything there)."""
    value = data.get(key)
    return value if isinstance(value, str) else ""


def object_field(data: dict[str, Any], key: str) -> dict[str, Any]:
    """Return `data[key]` if it is an object, else an empty one."""
    value = data.get(key)
    return value if isinstance(value, dict) else {}


def looks_like(objects: Iterable[dict[str, Any]]) -> bool:
    """Say whether these first lines of a file are Claude Code's."""
    return any(
        text_field(obj, "type") in _KNOWN_TYPES
        and ("uuid" in obj or "leafUuid" in obj or "sessionId" in obj or "snapshot" in obj)
        for obj in objects
    )


def blocks_of(content: Any) -> list[Block]:
    """Return content as blocks; a plain string is one text block."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        return []
    return [{"type": "text", "text": b} if isinstance(b, str) else b for b in content if isinstance(b, dict | str)]


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
    """Another file of the source holds the same line."""

    @property
    def message(self) -> dict[str, Any]:
        return object_field(self.data, "message")

    @property
    def blocks(self) -> list[Block]:
        """What the model saw of this line."""
        kind = self.data.get("type")
        if kind == "attachment":
            return _attachment_blocks(object_field(self.data, "attachment"))
        if kind in ("system", "queue-operation"):
            return blocks_of(self.data.get("content"))
        return blocks_of(self.message.get("content"))

    @property
    def agent(self) -> str | None:
        """The key of the subagent that the line belongs to; "" where the line does not name it; None for no agent."""
        if self.data.get("isSidechain") is True:
            return text_field(self.data, "agentId")
        return text_field(self.data, "parent_tool_use_id") or None

    def is_interrupt(self) -> bool:
        """Say whether the line marks the point at which the user stopped the agent."""
        if text_field(self.data, "interruptedMessageId"):
            return True
        texts = (b.get("content") if b.get("type") == "tool_result" else b.get("text") for b in self.blocks)
        return any(isinstance(t, str) and t.strip() in _INTERRUPTS for t in texts)

    def says_truncated(self) -> bool:
        """Say whether an API error reports that the answer before it hit the output limit."""
        errors = {text_field(self.data, "apiError"), text_field(self.data, "error")}
        return "max_output_tokens" in errors or any(
            "output token maximum" in text_field(b, "text") for b in self.blocks
        )


def _attachment_blocks(attachment: dict[str, Any]) -> list[Block]:
    kind = text_field(attachment, "type")
    value: Any = attachment
    for key in _ATTACHMENT_TEXT.get(kind, ()):
        value = value.get(key) if isinstance(value, dict) else None
    if value is attachment or (kind == "hook_success" and attachment.get("hookEvent") not in _HOOKS_SHOWN):
        return []
    return [b for b in blocks_of(value) if b.get("type") != "text" or text_field(b, "text").strip()]


def kind_of_line(data: dict[str, Any]) -> str:
    """Decide what a line is: here, and only here, a line gets its kind. A line that is no JSON object has none.

    - `assistant`: a part of a turn. In a context, or on an abandoned branch.
    - `user`: what the model was shown beside its turns: prompts, tool results, echoes of local commands, attachments
      with a text of their own. In a context, or on an abandoned branch.
    - `boundary`, `microcompact`: a compaction; a new context begins.
    - `api_error`: stands where a turn should be; in no context, and the turn counts as lost.
    - `queue`: a prompt that waits; shown if the running turn absorbed it.
    - `replacement`: what was shown instead of large tool results; takes their place.
    - `attachment` (without text), `virtual`, `empty`, `progress`, `summary`, `hook_summary`, `system`, `snapshot`,
      `bookkeeping`, `unknown_type`: the model did not see them; counted, and walked through where they carry the chain.
    """
    kind = text_field(data, "type")
    if kind in ("assistant", "user"):
        message = object_field(data, "message")
        if data.get("isVirtual") is True:
            return "virtual"
        if not message or (kind == "assistant" and not blocks_of(message.get("content"))):
            return "empty"
        return "api_error" if kind == "assistant" and data.get("isApiErrorMessage") is True else kind
    if kind == "system":
        subtype = text_field(data, "subtype")
        if subtype == "local_command" and text_field(data, "content"):
            return "user"  # echoes of local commands reach the model, whichever type of line holds them
        return _KIND_OF_SYSTEM_SUBTYPE.get(subtype, "system")
    if kind == "attachment":
        return "user" if _attachment_blocks(object_field(data, "attachment")) else "attachment"
    return _KIND_OF_OTHER_TYPE.get(kind, "unknown_type")


class SeenLines:
    """The lines of the files that were read before, and the groups that share lines.

    A resumed or branched session copies the lines that it starts from into its own file. A line is the same if its
    `uuid` (or the one that `forkedFrom` names) and its message are: some exports number their lines from 1 in every
    file, so the `uuid` alone would join strangers.
    """

    def __init__(self) -> None:
        self._first: dict[str, tuple[int, str, Path]] = {}
        self._joined: dict[str, str] = {}
        self._order: dict[str, int] = {}

    def root(self, group: str) -> str:
        """Return the name that all groups joined with `group` share: the one that was read first."""
        path = []
        while group in self._joined:
            path.append(group)
            group = self._joined[group]
        self._joined.update(dict.fromkeys(path, group))
        return group

    def repeats(self, line: Line, group: str, path: Path) -> bool:
        """Say whether another file held this line before; if so, join the two groups."""
        key = text_field(object_field(line.data, "forkedFrom"), "messageUuid") or line.uuid
        content = hash(msgspec.json.encode([line.kind, line.data.get("message")]))
        first = self._first.setdefault(key, (content, group, path))
        self._order.setdefault(group, len(self._order))
        if first[0] != content or first[2] == path:
            return False
        older, newer = sorted((self.root(first[1]), self.root(group)), key=self._order.__getitem__)
        if older != newer:
            self._joined[newer] = older
        return True


def read(path: Path, report: ReadReport) -> list[Line]:
    """Read the lines of a file in order.

    `report.fates` gets the lines that are no JSON object (`broken`) and those that repeat the `uuid` of an earlier
    line of the file (`duplicate`); every other line is returned.
    """
    lines: list[Line] = []
    seen: set[str] = set()
    for number, data in read_lines(path):
        if data is None:
            report.fates[number] = "broken"
            report.broken.append(f"{path.name}:{number}")
            continue
        uuid = text_field(data, "uuid")
        if uuid in seen:
            report.fates[number] = "duplicate"
            continue
        if uuid:
            seen.add(uuid)
        parent = text_field(data, "parentUuid") or None
        lines.append(Line(number, data, kind_of_line(data), uuid or f"line:{number}", parent, "parentUuid" not in data))
    return lines


def group_of(lines: Iterable[Line], default: str) -> str:
    """Return the id of the session that these lines belong to."""
    return next((n for x in lines for k in ("sessionId", "session_id") if (n := text_field(x.data, k))), default)


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
