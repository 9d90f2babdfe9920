"""What was recorded of the system prompt and the tools: `prompt_snapshot`, and `init` of stream-json."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from sdft_cli.records import ToolSchema
from sdft_cli.traces.claude_code.attachments import object_field, objects_in, text_field
from sdft_cli.traces.claude_code.lines import Line


@dataclass(frozen=True)
class Prompt:
    """What stood before the conversation: the system prompt ("" if none is recorded), and the tools.

    `tools` are whole schemas; `names` only names, as stream-json has them. None: not recorded.
    """

    system: str
    tools: tuple[ToolSchema, ...] | None
    names: tuple[str, ...] | None = None


def prompt_of(line: Line, notes: Counter[str]) -> Prompt:
    """Return what a line of kind `prompt` records; a tool without a name or a schema is left out and counted."""
    if line.data.get("type") == "system":
        names = line.data.get("tools")
        listed = tuple(n for n in names if isinstance(n, str)) if isinstance(names, list) else None
        return Prompt("", None, listed)
    snapshot = object_field(line.data, "attachment")
    said = snapshot.get("systemPrompt")
    parts = said if isinstance(said, list) else [said]
    texts = [text_field(snapshot, "cliPrefix"), *(p if isinstance(p, str) else _block_text(p) for p in parts)]
    system = "\n".join(text for text in texts if text.strip())
    recorded = snapshot.get("tools")
    return Prompt(system, _tools(objects_in(snapshot, "tools"), notes) if isinstance(recorded, list) else None)


def _block_text(part: Any) -> str:
    return text_field(part, "text") if isinstance(part, dict) else ""


def _tools(listed: list[dict[str, Any]], notes: Counter[str]) -> tuple[ToolSchema, ...]:
    found: dict[str, ToolSchema] = {}
    for tool in listed:
        schema = object_field(tool, "schema") or tool
        name = text_field(tool, "name") or text_field(schema, "name")
        parameters = schema.get("input_schema", tool.get("input_schema"))
        if not name or not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
            notes["bad_tool_schemas"] += 1
            continue
        description = text_field(schema, "description") or text_field(tool, "description")
        try:
            found[name] = ToolSchema(name, description, json.dumps(parameters, ensure_ascii=False))
        except RecursionError:
            notes["bad_tool_schemas"] += 1
    return tuple(found.values())
