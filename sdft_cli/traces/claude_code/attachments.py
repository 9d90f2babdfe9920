"""The text that an attachment showed the model: as Claude Code recorded it, or the attachment's own words.

Versions from 2.1.260 on write beside an attachment what they made of it (`rendered`). Before, only the parts are there:
a file's name and its content, but not the sentence around them. What stands in the line is shown, each part behind its
name, and nothing is made up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sdft_cli.traces.fields import object_of, objects_of, text_of

Block = dict[str, Any]

SNAPSHOT = "prompt_snapshot"
"""The attachment that holds the system prompt and the tools; see `prompts.py`."""
WORDLESS = frozenset(
    {
        *("agent_listing_delta", "agent_mention", "already_read_file", "auto_mode", "auto_mode_exit", "budget_usd"),
        *("command_permissions", "compact_file_reference", "compaction_reminder", "context_efficiency", "date"),
        *("date_change", "deferred_tools_delta", "dynamic_skill", "edited_image_file", "environment"),
        *("hook_cancelled", "hook_error_during_execution", "hook_non_blocking_error", "hook_permission_decision"),
        *("hook_system_message", "max_turns_reached", "mcp_instructions_delta", "opened_file_in_ide", "output_style"),
        *("pdf_reference", "plan_mode", "plan_mode_exit", "plan_mode_reentry", "structured_output", "task_reminder"),
        *("task_status", "team_context", "todo", "todo_reminder", "token_usage", "ultrathink_effort"),
        "verify_plan_reminder",
    }
)
"""Types that say that something was shown, in words of Claude Code's own that old versions do not record."""
_HOOKS_SHOWN = ("SessionStart", "UserPromptSubmit")


def blocks_of(content: Any) -> list[Block]:
    """Return content as blocks; a plain string is one text block, an object one block."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, dict):
        return [content]
    if not isinstance(content, list):
        return []
    return [{"type": "text", "text": b} if isinstance(b, str) else b for b in content if isinstance(b, dict | str)]


def attachment_blocks(data: dict[str, Any]) -> list[Block]:
    """Return what the model saw of an attachment line; nothing if it saw nothing, or if its words are not recorded."""
    attachment = object_of(data, "attachment")
    kind = text_of(attachment, "type")
    if kind == SNAPSHOT:
        return []
    blocks = rendered_blocks(data)
    if blocks is None:
        words = _WORDS.get(kind)
        blocks = [block for content in words(attachment) for block in blocks_of(content)] if words else []
    return [b for b in blocks if b.get("type") != "text" or text_of(b, "text").strip()]


def rendered_blocks(data: dict[str, Any]) -> list[Block] | None:
    """Return what Claude Code recorded as shown: nothing, for an empty list. None: it recorded nothing readable."""
    rendered = data.get("rendered")
    if not isinstance(rendered, list):
        return None
    readable = [content for item in rendered if (content := _content(item)) is not None]
    return [b for content in readable for b in blocks_of(content)] if readable or not rendered else None


def unreadable_renderings(data: dict[str, Any]) -> int:
    """Count what was recorded as shown and is no text."""
    rendered = data.get("rendered")
    if rendered is None:
        return 0
    return sum(_content(item) is None for item in rendered) if isinstance(rendered, list) else 1


def _content(item: Any) -> str | list[Any] | None:
    """Return the text or the blocks of one rendering: of a message, or a block by itself."""
    content = item.get("content", [item] if "type" in item else None) if isinstance(item, dict) else item
    return content if isinstance(content, str | list) else None


def is_known(kind: str) -> bool:
    """Say whether this type of attachment is one that is listed here."""
    return kind in _WORDS or kind in WORDLESS or kind == SNAPSHOT


def _named(name: str, content: str) -> str:
    return f"{name}:\n{content}" if name and content else content


def _file(attachment: Block) -> Iterator[Any]:
    content = object_of(attachment, "content")
    name = text_of(attachment, "filename")
    if text_of(content, "type") in ("image", "pdf"):
        yield f"{name}:"
        yield [{"type": "image" if content["type"] == "image" else "document"}]
    else:
        yield _named(name, text_of(object_of(content, "file"), "content"))


def _diagnostics(attachment: Block) -> Iterator[str]:
    for file in objects_of(attachment, "files"):
        found = [
            f"line {line + 1}: {text_of(item, 'severity')}: {text_of(item, 'message')}"
            if isinstance(line := object_of(object_of(item, "range"), "start").get("line"), int)
            else f"{text_of(item, 'severity')}: {text_of(item, 'message')}"
            for item in objects_of(file, "diagnostics")
        ]
        yield _named(text_of(file, "uri"), "\n".join(found))


def _selection(attachment: Block) -> Iterator[str]:
    name, first, last = text_of(attachment, "filename"), attachment.get("lineStart"), attachment.get("lineEnd")
    yield _named(f"{name}, lines {first} to {last}" if name else "", text_of(attachment, "content"))


def _resource(attachment: Block) -> Iterator[str]:
    for part in objects_of(object_of(attachment, "content"), "contents"):
        yield _named(text_of(part, "uri") or text_of(attachment, "uri"), text_of(part, "text"))


def _hook_answer(attachment: Block) -> Iterator[str]:
    response = object_of(attachment, "response")
    yield text_of(response, "systemMessage")
    yield text_of(object_of(response, "hookSpecificOutput"), "additionalContext")


def _parts(key: str, name: str, content: str) -> Callable[[Block], Iterator[str]]:
    """Each object of a list: its text behind its name."""
    return lambda a: (_named(text_of(part, name), text_of(part, content)) for part in objects_of(a, key))


def _text(key: str, name: str = "") -> Callable[[Block], Iterator[Any]]:
    """A field, which may hold blocks, behind the name that another field holds."""

    def words(attachment: Block) -> Iterator[Any]:
        value = attachment.get(key)
        yield _named(text_of(attachment, name), value) if name and isinstance(value, str) else value

    return words


_WORDS: dict[str, Callable[[Block], Iterator[Any]]] = {
    "queued_command": _text("prompt"),
    "file": _file,
    "directory": _text("content", "path"),
    "edited_text_file": _text("snippet", "filename"),
    "nested_memory": lambda a: iter(
        [_named(text_of(a, "path"), text_of(object_of(a, "content"), "content") or text_of(a, "content"))]
    ),
    "plan_file_reference": _text("planContent", "planFilePath"),
    "hook_additional_context": _text("content"),
    "hook_blocking_error": lambda a: iter([text_of(object_of(a, "blockingError"), "blockingError")]),
    "hook_success": lambda a: iter([a.get("content")] if a.get("hookEvent") in _HOOKS_SHOWN else []),
    "hook_stopped_continuation": _text("message"),
    "async_hook_response": _hook_answer,
    "diagnostics": _diagnostics,
    "selected_lines_in_ide": _selection,
    "invoked_skills": _parts("skills", "name", "content"),
    "mcp_resource": _resource,
    "instructions": _parts("files", "path", "content"),
    "relevant_memories": _parts("memories", "path", "content"),
    "skill_listing": _text("content"),
    "critical_system_reminder": _text("content"),
    "total_tokens_reminder": _text("text"),
}
"""Where the words of an attachment stand, by its type."""
