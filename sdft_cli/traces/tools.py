"""Tool schemas of a session: declared in our data file, inferred from observed calls, or given by the source.

Claude Code does not record the tools that it offered. What is known: its built-in tools (`templates/tools/`), and every
call that was made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sdft_cli.records import Session, ToolCall, ToolSchema
from sdft_cli.resources import resource_text

_CLAUDE_CODE = "claude_code"
_CLAUDE_CODE_FORMATS = ("claude-code", "messages", "")
"""Formats of sessions that may have had Claude Code's built-in tools; plain conversations count as such."""
_JSON_TYPES: list[tuple[type, str]] = [
    (bool, "boolean"),
    (int, "integer"),
    (float, "number"),
    (str, "string"),
    (list, "array"),
    (dict, "object"),
]


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
    return next((name for kind, name in _JSON_TYPES if isinstance(value, kind)), "null")


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
    found: dict[str, list[ToolCall]] = {}
    for session in sessions:
        for message in session.messages:
            for call in message.tool_calls:
                found.setdefault(call.name, []).append(call)
    return found


def _agent(session: Session) -> str:
    """Name whose built-in tools a session may have had."""
    name = str(session.metadata.get("format") or "")
    return _CLAUDE_CODE if name in _CLAUDE_CODE_FORMATS else name


def with_tools(sessions: Sequence[Session], every_builtin: bool = False) -> list[Session]:
    """Give each session that names no tools the ones that it may have had.

    Built-in tools: those that any session of the same agent in the source calls (or all, with `every_builtin`), so
    that a prompt does not give away which tools its own session will use. Other tools (MCP) are a session's own: those
    that its group calls. Schemas are declared for Claude Code's built-in tools, else inferred from all calls.
    """
    groups: dict[str, set[str]] = {}
    for session in sessions:
        groups.setdefault(session.group, set()).update(_calls_by_name([session]))
    offers = {
        agent: _Offer.of([s for s in sessions if _agent(s) == agent and not s.tools], agent, every_builtin)
        for agent in {_agent(s) for s in sessions}
    }
    return [s if s.tools else replace(s, tools=offers[_agent(s)].to(groups[s.group])) for s in sessions]


@dataclass(frozen=True)
class _Offer:
    """What the sessions of one agent are offered: some tools to all, the others to the groups that call them."""

    to_all: tuple[ToolSchema, ...]
    others: dict[str, ToolSchema]

    @classmethod
    def of(cls, sessions: Sequence[Session], agent: str, every_builtin: bool) -> _Offer:
        calls = _calls_by_name(sessions)
        declared = declared_tools() if agent == _CLAUDE_CODE else {}
        inferred = {name: infer_schema(name, found) for name, found in sorted(calls.items()) if name not in declared}
        builtin = [tool for name, tool in declared.items() if every_builtin or name in calls]
        if agent != _CLAUDE_CODE:  # its built-in tools are not known, but MCP tools carry their server's name
            builtin = [tool for name, tool in inferred.items() if not name.startswith("mcp")]
        return cls(tuple(builtin), {n: t for n, t in inferred.items() if t not in builtin})

    def to(self, called: set[str]) -> tuple[ToolSchema, ...]:
        return (*self.to_all, *(tool for name, tool in self.others.items() if name in called))
