"""Tool schemas of a session: declared in our data file, inferred from observed calls, or given by the source.

Claude Code does not record the tools that it offered. What is known: its built-in tools (`templates/tools/`), and every
call that was made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import jsonschema_rs

from sdft_cli.records import Session, ToolCall, ToolSchema
from sdft_cli.resources import resource_text

_CLAUDE_CODE, _PLAIN = "claude_code", "messages"
_AGENTS = {"claude-code": _CLAUDE_CODE, "": _PLAIN}
"""Format -> whose built-in tools a session may have had, where the format itself does not name it."""
OFFERED = "offered_tools"
"""Names the tools of a session in its metadata, where a source records names only, or that there were none."""
_JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}


def none_offered(listed: Any) -> dict[str, Any]:
    """Return what metadata say of a list of tools that is there and empty; nothing of any other."""
    return {OFFERED: []} if listed == [] else {}


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


class _Inferred:
    """The schema of a tool from its calls, which are looked at one by one and not kept."""

    def __init__(self) -> None:
        self._types: dict[str, set[str]] = {}
        self._required: set[str] | None = None

    def add(self, call: ToolCall) -> None:
        arguments = call.parsed_arguments()
        self._required = set(arguments) if self._required is None else self._required & set(arguments)
        for key, value in arguments.items():
            self._types.setdefault(key, set()).add(_type_name(value))

    def schema(self, name: str) -> ToolSchema:
        properties = {}
        for key, seen in sorted(self._types.items()):
            names = sorted(n for n in seen if not (n == "integer" and "number" in seen))
            properties[key] = {"type": names[0] if len(names) == 1 else names}
        parameters: dict[str, Any] = {"type": "object", "properties": properties}
        if self._required:
            parameters["required"] = sorted(self._required)
        return ToolSchema(name, "", json.dumps(parameters, ensure_ascii=False), "inferred")


def infer_schema(name: str, calls: Iterable[ToolCall]) -> ToolSchema:
    """Infer the schema of a tool from its calls.

    A parameter's type is every type that was seen; a parameter is required if every call has it. `1` and `1.5` seen
    together are a `number`.
    """
    inferred = _Inferred()
    for call in calls:
        inferred.add(call)
    return inferred.schema(name)


def _calls(session: Session) -> Iterable[ToolCall]:
    return (call for message in session.messages for call in message.tool_calls)


def _agent(session: Session) -> str:
    """Name whose built-in tools a session may have had."""
    name = str(session.metadata.get("format") or "")
    return _AGENTS.get(name, name)


def _records_names(session: Session) -> bool:
    """Say whether it is recorded which tools a session had, by name. None at all: not where it calls one."""
    names = session.metadata.get(OFFERED)
    return bool(names) or (names is not None and not any(True for _ in _calls(session)))


def _fits(call: ToolCall, tool: ToolSchema) -> bool:
    """Say whether a call has what a schema asks for, and nothing that it does not name."""
    names, validator = _checked(tool.parameters)
    arguments = call.parsed_arguments()
    return arguments.keys() <= names and validator.is_valid(arguments)


@cache
def _checked(parameters: str) -> tuple[frozenset[str], Any]:
    """Return the names of a declared schema's properties, and what validates arguments."""
    schema = json.loads(parameters)
    return frozenset(schema["properties"]), jsonschema_rs.validator_for(schema, offline=True)


class OfferedTools:
    """The tools that the sessions of a source may have had; all of them are looked at once, and none is kept.

    Where names are recorded (`metadata["offered_tools"]`, as stream-json has them), these are offered and no others.
    Else built-in tools: those that any session of the same agent in the source calls (or all, with `every_builtin`), so
    that a prompt does not give away which tools its own session will use. Other tools (MCP) are a session's own: those
    that its group calls. Schemas are declared for Claude Code's built-in tools, else inferred from all calls.

    A plain conversation may be Claude Code's: a declared schema is its tool's, if every call of plain conversations
    fits it.
    """

    def __init__(self, sessions: Iterable[Session], every_builtin: bool = False) -> None:
        self._every_builtin, self._declared = every_builtin, declared_tools()
        self._groups: dict[str, set[str]] = {}
        self._called: dict[str, dict[str, _Inferred]] = {}
        self._named: dict[str, _Inferred] = {}
        self._others: set[str] = set()
        """Tools of plain conversations that have a declared name, and other parameters."""
        for session in sessions:
            self._look_at(session)
        self._offers = {agent: self._offer(agent) for agent in self._called}

    def _look_at(self, session: Session) -> None:
        agent = _agent(session)
        of_group, of_agent = self._groups.setdefault(session.group, set()), self._called.setdefault(agent, {})
        declared = self._declared_for(agent)
        for call in _calls(session):
            of_group.add(call.name)
            if OFFERED in session.metadata:
                self._named.setdefault(call.name, _Inferred()).add(call)
            if not session.tools:
                inferred = of_agent.setdefault(call.name, _Inferred())
                if agent == _PLAIN and call.name in declared and not _fits(call, declared[call.name]):
                    self._others.add(call.name)
                if agent == _PLAIN or call.name not in declared:
                    inferred.add(call)

    def _declared_for(self, agent: str) -> dict[str, ToolSchema]:
        if agent == _PLAIN:
            return {name: tool for name, tool in self._declared.items() if name not in self._others}
        return self._declared if agent == _CLAUDE_CODE else {}

    def _offer(self, agent: str) -> tuple[list[ToolSchema], list[ToolSchema]]:
        """Return the tools that all sessions of one agent are offered, and those for the groups that call them."""
        calls, declared = self._called[agent], self._declared_for(agent)
        inferred = [some.schema(name) for name, some in sorted(calls.items()) if name not in declared]
        if agent in (_CLAUDE_CODE, _PLAIN):
            return [tool for name, tool in declared.items() if self._every_builtin or name in calls], inferred
        # Its built-in tools are not known, but MCP tools carry their server's name.
        builtin = [tool for tool in inferred if not tool.name.startswith("mcp")]
        return builtin, [tool for tool in inferred if tool not in builtin]

    def given_to(self, session: Session) -> Session:
        """Return one of the sessions with the tools that it may have had; one that records its tools as it is."""
        return session if session.tools else replace(session, tools=self._offered_to(session))

    def _offered_to(self, session: Session) -> tuple[ToolSchema, ...]:
        agent = _agent(session)
        if _records_names(session):
            declared = self._declared_for(agent)
            names = dict.fromkeys(session.metadata[OFFERED])
            return tuple(declared.get(name) or self._named.get(name, _Inferred()).schema(name) for name in names)
        builtin, others = self._offers[agent]
        return (*builtin, *(tool for tool in others if tool.name in self._groups[session.group]))
