"""The `parts` of a `Content` of Gemini's API, which Gemini CLI and Qwen Code record."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from sdft_cli.records import Message, ToolCall
from sdft_cli.traces.agents.calls import json_text, tool_call
from sdft_cli.traces.fields import FILE, IMAGE, object_of, text_of


@dataclass
class Parts:
    """What the parts of one message hold, by kind."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    results: list[Message] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The texts; the parts of one message are pieces of one text."""
        return "".join(self.texts)


def result_message(response: dict[str, Any], notes: Counter[str]) -> Message:
    """Return the tool message of a `functionResponse`: its output, else its error, else all of it as JSON."""
    value = response.get("response")
    if isinstance(value, dict):
        value = next((value[key] for key in ("output", "error") if value.get(key) is not None), value or None)
    call_id, name = text_of(response, "id"), text_of(response, "name")
    return Message("tool", json_text(value, notes), tool_call_id=call_id or None, name=name or None)


def _add(part: Any, found: Parts, notes: Counter[str]) -> None:
    if isinstance(part, str):
        found.texts.append(part)
    elif not isinstance(part, dict):
        notes["unknown_blocks"] += 1
    elif part.get("thought") is True or isinstance(part.get("thought"), str):
        found.thoughts.append(text_of(part, "text") or text_of(part, "thought"))
    elif isinstance(part.get("text"), str):
        found.texts.append(part["text"])
    elif isinstance(part.get("functionCall"), dict):
        call = part["functionCall"]
        found.calls.append(tool_call(call.get("id"), call.get("name"), call.get("args"), notes))
    elif isinstance(part.get("functionResponse"), dict):
        found.results.append(result_message(part["functionResponse"], notes))
    elif isinstance(part.get("inlineData") or part.get("fileData"), dict):
        media = text_of(object_of(part, "inlineData") or object_of(part, "fileData"), "mimeType")
        notes["images" if media.startswith("image/") else "documents"] += 1
        found.texts.append(IMAGE if media.startswith("image/") else FILE)
    else:
        notes["unknown_blocks"] += 1


def parts_of(content: Any, notes: Counter[str]) -> Parts:
    """Sort a text, a part or a list of them by kind; what is none of these is counted."""
    found = Parts()
    for part in content if isinstance(content, list) else [] if content is None else [content]:
        _add(part, found, notes)
    return found
