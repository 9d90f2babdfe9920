"""What was recorded of the system prompt and the tools: `prompt_snapshot`, and `init` of stream-json."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from sdft_cli.records import ToolSchema
from sdft_cli.traces.claude_code.lines import Line
from sdft_cli.traces.fields import object_of, objects_of, text_of


@dataclass(frozen=True)
class Prompt:
    """What stood before the conversation: the system prompt ("" if none is recorded), and the tools.

    `tools` are whole schemas; `names` only names, as stream-json has them. None: not recorded.
    """

    system: str
    tools: tuple[ToolSchema, ...] | None
    names: tuple[str, ...] | None = None


def prompt_of(line: Line, notes: Counter[str]) -> Prompt:
    """Return what a line of kind `prompt` records; tools without a name or a schema, and parts of the system prompt
    without text, are left out and counted."""
    if line.data.get("type") == "system":
        names = line.data.get("tools")
        if not isinstance(names, list):
            return Prompt("", None)
        listed = tuple(name for name in names if isinstance(name, str))
        notes["bad_tool_schemas"] += len(names) - len(listed)
        return Prompt("", None, listed)
    snapshot = object_of(line.data, "attachment")
    said = snapshot.get("systemPrompt")
    parts = said if isinstance(said, list) else [said]
    said_texts = [p if isinstance(p, str) else text_of(p, "text") for p in parts if p is not None]
    notes["unreadable_system_prompts"] += sum(not isinstance(p, str | dict) for p in parts if p is not None)
    texts = [text_of(snapshot, "cliPrefix"), *said_texts]
    system = "\n".join(text for text in texts if text.strip())
    recorded = snapshot.get("tools")
    if not isinstance(recorded, list):
        return Prompt(system, None)
    tools = objects_of(snapshot, "tools")
    notes["bad_tool_schemas"] += len(recorded) - len(tools)
    return Prompt(system, _tools(tools, notes))


def _tools(listed: list[dict[str, Any]], notes: Counter[str]) -> tuple[ToolSchema, ...]:
    found: dict[str, ToolSchema] = {}
    for tool in listed:
        schema = object_of(tool, "schema") or tool
        name = text_of(tool, "name") or text_of(schema, "name")
        parameters = schema.get("input_schema", tool.get("input_schema"))
        if not name or not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
            notes["bad_tool_schemas"] += 1
            continue
        description = text_of(schema, "description") or text_of(tool, "description")
        try:
            found[name] = ToolSchema(name, description, json.dumps(parameters, ensure_ascii=False))
        except RecursionError:
            notes["bad_tool_schemas"] += 1
    return tuple(found.values())
