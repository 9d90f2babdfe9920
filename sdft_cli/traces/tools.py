"""Tool schemas of a session: declared in our data file, inferred from observed calls, or given by the source.

Claude Code does not record the tools that it offered. What is known: its built-in tools (`templates/tools/`), and every
call that was made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from sdft_cli.records import Session, ToolCall, ToolSchema
from sdft_cli.resources import resource_text

_CLAUDE_CODE = "claude_code"
_CLAUDE_CODE_FORMATS = ("claude-code", "messages", "")
"""Formats of sessions that may have had Claude Code's built-in tools; plain conversations count as such."""
OFFERED = "offered_tools"
"""Names the tools of a session in its metadata, where a source records names only."""
_JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}


def declared_tools(agent: str = _CLAUDE_CODE) -> dict[str, ToolSchema]:
    """Return the built-in tools of an agent by name, in the order of the data file."""
    document = json.loads(resource_text("templates", "tools", f"{agent}.json"))
    return {
        tool["name"]: ToolSchema(
            tool["name"], tool["description"], json.dumps(tool["parameters"], ensure_ascii=False), "declared"
        )
        for tool in document["tools"]
    }


def _type_name(value: Any) -> str:
    return _JSON_TYPES.get(type(value), "null")


def infer_schema(name: str, calls: Iterable[ToolCall]) -> ToolSchema:
    """Infer the schema of a tool from its calls.

    A parameter's type is every type that was seen; a parameter is required if every call has it. `1` and `1.5` seen
    together are a `number`.
    """
    types: dict[str, list[str]] = {}
    required: set[str] | None = None
    for call in calls:
        arguments = call.parsed_arguments()
        required = set(arguments) if required is None else required & set(arguments)
        for key, value in arguments.items():
            seen = types.setdefault(key, [])
            if _type_name(value) not in seen:
                seen.append(_type_name(value))
    properties = {}
    for key, seen in sorted(types.items()):
        names = [n for n in seen if not (n == "integer" and "number" in seen)]
        properties[key] = {"type": names[0] if len(names) == 1 else sorted(names)}
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        parameters["required"] = sorted(required)
    return ToolSchema(name, "", json.dumps(parameters, ensure_ascii=False), "inferred")


def _calls_by_name(sessions: Iterable[Session]) -> dict[str, list[ToolCall]]:
    calls: dict[str, list[ToolCall]] = {}
    for call in (call for session in sessions for message in session.messages for call in message.tool_calls):
        calls.setdefault(call.name, []).append(call)
    return calls


def _agent(session: Session) -> str:
    """Name whose built-in tools a session may have had."""
    name = str(session.metadata.get("format") or "")
    return _CLAUDE_CODE if name in _CLAUDE_CODE_FORMATS else name


def with_tools(sessions: Sequence[Session], every_builtin: bool = False) -> list[Session]:
    """Give each session that records no tools the ones that it may have had.

    Where names are recorded (`metadata["offered_tools"]`, as stream-json has them), these are offered and no others.
    Else built-in tools: those that any session of the same agent in the source calls (or all, with `every_builtin`), so
    that a prompt does not give away which tools its own session will use. Other tools (MCP) are a session's own: those
    that its group calls. Schemas are declared for Claude Code's built-in tools, else inferred from all calls.
    """
    groups: dict[str, set[str]] = {}
    for session in sessions:
        groups.setdefault(session.group, set()).update(_calls_by_name([session]))
    offers = {
        agent: _offer([s for s in sessions if _agent(s) == agent and not s.tools], agent, every_builtin)
        for agent in {_agent(s) for s in sessions}
    }
    calls = _calls_by_name(s for s in sessions if OFFERED in s.metadata)

    def offered(session: Session) -> tuple[ToolSchema, ...]:
        if OFFERED in session.metadata:
            declared = declared_tools() if _agent(session) == _CLAUDE_CODE else {}
            names = dict.fromkeys(session.metadata[OFFERED])
            return tuple(declared.get(name) or infer_schema(name, calls.get(name, ())) for name in names)
        builtin, others = offers[_agent(session)]
        return (*builtin, *(tool for tool in others if tool.name in groups[session.group]))

    return [s if s.tools else replace(s, tools=offered(s)) for s in sessions]


def _offer(sessions: Sequence[Session], agent: str, every_builtin: bool) -> tuple[list[ToolSchema], list[ToolSchema]]:
    """Return the tools that all sessions of one agent are offered, and those for the groups that call them."""
    calls = _calls_by_name(sessions)
    declared = declared_tools() if agent == _CLAUDE_CODE else {}
    inferred = [infer_schema(name, some) for name, some in sorted(calls.items()) if name not in declared]
    if agent == _CLAUDE_CODE:
        return [tool for name, tool in declared.items() if every_builtin or name in calls], inferred
    # Its built-in tools are not known, but MCP tools carry their server's name.
    builtin = [tool for tool in inferred if not tool.name.startswith("mcp")]
    return builtin, [tool for tool in inferred if tool not in builtin]
