"""Small sessions in the formats of `sdft_cli.traces.agents`, written for these tests: each reads a file and says so."""

from __future__ import annotations

from typing import Any


def qwen(uuid: str, parent: str | None, kind: str, *parts: Any, **extra: Any) -> dict[str, Any]:
    """One line of Qwen Code; `parts` make its message, if there are any."""
    line = {"uuid": uuid, "parentUuid": parent, "sessionId": "q", "type": kind, "cwd": "/w", "version": "0.9"}
    role = "model" if kind == "assistant" else "user"
    return {**line, **({"message": {"role": role, "parts": list(parts)}} if parts else {}), **extra}


def fn_call(name: str, call_id: str, **args: Any) -> dict[str, Any]:
    return {"functionCall": {"id": call_id, "name": name, "args": args}}


def fn_response(name: str, call_id: str, **response: Any) -> dict[str, Any]:
    return {"functionResponse": {"id": call_id, "name": name, "response": response}}


def event(number: int, kind: str, **data: Any) -> dict[str, Any]:
    """One event of Copilot CLI."""
    parent = f"e{number - 1}" if number else None
    return {"type": kind, "data": data, "id": f"e{number}", "timestamp": "t", "parentId": parent}


def opencode(name: str, role: str, *parts: dict[str, Any], **info: Any) -> dict[str, Any]:
    """One message of an export of OpenCode."""
    return {"info": {"id": name, "role": role, "sessionID": "ses_1", **info}, "parts": list(parts)}


def tool_part(call_id: str, name: str, status: str, **state: Any) -> dict[str, Any]:
    return {"type": "tool", "callID": call_id, "tool": name, "state": {"status": status, **state}}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


START, FINISH = {"type": "step-start"}, {"type": "step-finish", "reason": "tool-calls"}

AGENT_SESSIONS: dict[str, list[Any]] = {
    "qwen-code": [
        qwen("1", None, "user", {"text": "What is in a?"}),
        qwen(
            "2", "1", "assistant", {"text": "Look first", "thought": True}, fn_call("read", "k1", path="a"), model="m"
        ),
        qwen("3", "2", "tool_result", fn_response("read", "k1", output="  1\n")),
        qwen("4", "3", "system", subtype="ui_telemetry", systemPayload={}),
        qwen("5", "4", "assistant", {"text": "A one."}, model="m"),
    ],
    "gemini-cli": [
        {"sessionId": "g", "projectHash": "h", "startTime": "t", "lastUpdated": "t", "kind": "main"},
        {"id": "1", "type": "user", "content": [{"text": "What is in a?"}]},
        {"id": "2", "type": "gemini", "content": "", "thoughts": [{"subject": "Look", "description": "first"}]},
        {
            "id": "2",
            "type": "gemini",
            "content": "",
            "model": "m",
            "thoughts": [{"subject": "Look", "description": "first"}],
            "toolCalls": [
                {
                    "id": "k1",
                    "name": "read",
                    "args": {"path": "a"},
                    "status": "success",
                    "result": [fn_response("read", "k1", output="  1\n")],
                }
            ],
        },
        {"$set": {"lastUpdated": "t2"}},
        {"id": "3", "type": "info", "content": "Update available"},
        {"id": "4", "type": "gemini", "content": "A one.", "model": "m"},
    ],
    "copilot-cli": [
        event(0, "session.start", sessionId="c", version=1),
        event(1, "system.message", role="system", content="Be exact."),
        event(2, "user.message", content="What is in a?", transformedContent="<t>now</t>\nWhat is in a?"),
        event(3, "assistant.turn_start", turnId="0"),
        event(
            4,
            "assistant.message",
            messageId="m1",
            content="",
            reasoningText="Look first",
            model="m",
            toolRequests=[{"toolCallId": "k1", "name": "read", "arguments": {"path": "a"}}],
        ),
        event(5, "tool.execution_start", toolCallId="k1", toolName="read"),
        event(
            6,
            "tool.execution_complete",
            toolCallId="k1",
            success=True,
            result={"content": "  1\n", "detailedContent": "a: 1"},
        ),
        event(7, "assistant.message", messageId="m2", content="A one.", toolRequests=[]),
    ],
    "sts": [
        {"type": "session", "harness": "llama.app", "id": "s", "name": "A file", "cwd": "/w"},
        {"type": "message", "message": {"role": "system", "content": "Be exact."}},
        {"type": "message", "message": {"role": "user", "content": "What is in a?"}},
        {
            "type": "message",
            "message": {
                "role": "assistant",
                "content": "",
                "reasoningContent": "Look first",
                "model": "m",
                "toolCalls": [{"id": "k1", "function": {"name": "read", "arguments": '{"path": "a"}'}}],
            },
        },
        {"type": "message", "message": {"role": "tool", "content": "  1\n", "toolCallId": "k1"}},
        {"type": "message", "message": {"role": "assistant", "content": "A one."}},
    ],
    "opencode": [
        {
            "info": {"id": "ses_1", "title": "A file", "version": "1.2.0"},
            "messages": [
                opencode("m1", "user", text_part("What is in a?")),
                opencode(
                    "m2",
                    "assistant",
                    START,
                    {"type": "reasoning", "text": "Look first"},
                    tool_part("k1", "read", "completed", input={"path": "a"}, output="  1\n"),
                    FINISH,
                    modelID="m",
                ),
                opencode("m3", "assistant", START, text_part("A one."), FINISH, modelID="m"),
            ],
        }
    ],
    "atif": [
        {
            "schema_version": "ATIF-v1.7",
            "session_id": "a",
            "agent": {
                "name": "terminus",
                "version": "1",
                "model_name": "m",
                "tool_definitions": [
                    {"type": "function", "function": {"name": "read", "parameters": {"type": "object"}}}
                ],
            },
            "steps": [
                {"step_id": 1, "source": "system", "message": "Be exact."},
                {"step_id": 2, "source": "user", "message": "What is in a?"},
                {
                    "step_id": 3,
                    "source": "agent",
                    "message": "",
                    "reasoning_content": "Look first",
                    "tool_calls": [{"tool_call_id": "k1", "function_name": "read", "arguments": {"path": "a"}}],
                    "observation": {"results": [{"source_call_id": "k1", "content": "  1\n"}]},
                },
                {"step_id": 4, "source": "agent", "message": "A one."},
            ],
        }
    ],
}
"""Every format tells the same: a question, a call with reasoning, its result, an answer. Some have a system prompt."""
