from __future__ import annotations

import json
from dataclasses import replace

import jsonschema_rs

from sdft_cli.records import Message, Session, ToolCall, ToolSchema
from sdft_cli.traces.tools import OFFERED, declared_tools, infer_schema
from tests.datasets import with_tools


def session(name: str, *calls: ToolCall, group: str = "", tools: tuple[ToolSchema, ...] = ()) -> Session:
    messages = (Message("user", "hi"), Message("assistant", "", calls))
    return Session(name, messages, tools, group or name)


def test_declared_tools_are_valid_schemas_with_their_required_parameters_declared() -> None:
    tools = declared_tools()
    assert {"Bash", "Read", "Edit", "Write", "Grep", "Glob", "Task", "TodoWrite"} <= set(tools)
    for tool in tools.values():
        schema = json.loads(tool.parameters)
        jsonschema_rs.validator_for(schema)
        assert set(schema.get("required", [])) <= set(schema["properties"]), tool.name
        assert tool.origin == "declared"
        assert tool.description


def test_inferred_schema_unites_types_and_requires_what_every_call_has() -> None:
    found = infer_schema(
        "mcp__x",
        [ToolCall("1", "mcp__x", '{"id": 1, "q": "a"}'), ToolCall("2", "mcp__x", '{"id": 1.5, "flag": true}')],
    )
    assert found.origin == "inferred"
    assert json.loads(found.parameters) == {
        "type": "object",
        "properties": {"flag": {"type": "boolean"}, "id": {"type": "number"}, "q": {"type": "string"}},
        "required": ["id"],
    }


def test_sessions_are_offered_builtins_of_the_source_and_other_tools_of_their_own_group() -> None:
    given = ToolSchema("own", "", "{}", "given")
    sessions = [
        session("a", ToolCall("1", "Read", '{"file_path": "x"}')),
        session("b", ToolCall("2", "Bash", '{"command": "ls"}'), ToolCall("3", "mcp__x", '{"k": 1}')),
        session("b#2", ToolCall("4", "Bash", '{"command": "ls"}'), group="b"),
        session("c", ToolCall("5", "own", "{}"), tools=(given,)),
    ]
    offered = [[t.name for t in s.tools] for s in with_tools(sessions)]
    assert offered == [["Bash", "Read"], ["Bash", "Read", "mcp__x"], ["Bash", "Read", "mcp__x"], ["own"]]
    everything = with_tools(sessions, every_builtin=True)[0].tools
    assert [t.name for t in everything] == list(declared_tools())


def test_a_plain_conversation_has_a_declared_tool_only_where_its_calls_fit() -> None:
    sessions = [
        session("a", ToolCall("1", "Bash", '{"cmd": "ls"}'), ToolCall("2", "Read", '{"file_path": "x"}')),
        session("b", ToolCall("3", "Bash", '{"command": "ls"}')),
    ]
    tools = {tool.name: tool for tool in with_tools(sessions)[0].tools}
    assert {name: tool.origin for name, tool in tools.items()} == {"Read": "declared", "Bash": "inferred"}
    assert set(json.loads(tools["Bash"].parameters)["properties"]) == {"cmd", "command"}
    native = [replace(s, metadata={"format": "claude-code"}) for s in sessions]
    assert {tool.origin for s in with_tools(native) for tool in s.tools} == {"declared"}


def test_tools_that_are_recorded_as_none_are_not_guessed_but_where_one_is_called() -> None:
    none = {OFFERED: []}
    sessions = [
        session("a", ToolCall("1", "Bash", '{"command": "ls"}')),
        replace(session("b"), metadata=none),
        replace(session("c", ToolCall("2", "Read", '{"file_path": "x"}')), metadata=none),
    ]
    assert [[tool.name for tool in s.tools] for s in with_tools(sessions)] == [["Bash", "Read"], [], ["Bash", "Read"]]
