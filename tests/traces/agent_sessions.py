"""Small sessions of other agents, written for these tests: one that reads a file and edits it, in each format."""

from __future__ import annotations

from typing import Any

SESSIONS: dict[str, list[Any]] = {
    "codex": [
        {"type": "session_meta", "payload": {"id": "c1", "cwd": "/w", "base_instructions": {"text": "Be exact.\n"}}},
        {"type": "event_msg", "payload": {"type": "task_started"}},
        {"type": "response_item", "payload": {"type": "message", "role": "developer", "content": "No network."}},
        {
            "type": "response_item",
            "payload": {
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": "<environment_context>\n  <cwd>/w</cwd>\n"}],
            },
        },
        {"type": "turn_context", "payload": {"model": "gpt-x", "cwd": "/w"}},
        {
            "type": "response_item",
            "payload": {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Set a to 2"}]},
        },
        {
            "type": "response_item",
            "payload": {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Look first"}]},
        },
        {
            "type": "response_item",
            "payload": {
                "type": "function_call",
                "name": "shell",
                "call_id": "k1",
                "arguments": '{"cmd": "cat a.json"}',
            },
        },
        {"type": "response_item", "payload": {"type": "function_call_output", "call_id": "k1", "output": '{"a": 1}\n'}},
        {
            "type": "response_item",
            "payload": {"type": "custom_tool_call", "name": "apply_patch", "call_id": "k2", "input": '{"a": 2}'},
        },
        {"type": "response_item", "payload": {"type": "custom_tool_call_output", "call_id": "k2", "output": "ok"}},
        {"type": "response_item", "payload": {"type": "reasoning", "summary": [], "encrypted_content": "x"}},
        {"type": "event_msg", "payload": {"type": "agent_message", "message": "Done."}},
        {
            "type": "response_item",
            "payload": {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Done."}]},
        },
    ],
    "cursor": [
        {"type": "cursor_session_meta", "session_id": "u1", "model": "m"},
        {
            "type": "cursor_available_tools",
            "tools": [{"type": "function", "function": {"name": "Write", "parameters": {"type": "object"}}}],
        },
        {"role": "user", "message": {"content": [{"type": "text", "text": "Set a to 2"}]}},
        {
            "role": "assistant",
            "message": {
                "content": [
                    {"type": "thinking", "text": "Look first"},
                    {"type": "tool_use", "id": "k1", "name": "Write", "input": {"text": '{"a": 2}'}},
                ]
            },
        },
        {
            "role": "user",
            "message": {
                "content": [
                    {"type": "tool_result", "tool_use_id": "k1", "content": "  kept indent\n"},
                    {"type": "text", "text": "and hurry"},
                ]
            },
        },
        {"role": "assistant", "message": {"content": [{"type": "text", "text": "Done."}]}},
        {"type": "turn_ended", "status": "success"},
    ],
    "droid": [
        {"type": "session_start", "id": "d1", "version": 2, "cwd": "/w"},
        {
            "type": "message",
            "id": "1",
            "message": {"role": "user", "content": [{"type": "text", "text": "Set a to 2"}]},
        },
        {
            "type": "message",
            "id": "2",
            "parentId": "1",
            "message": {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Look first"},
                    {"type": "tool_use", "id": "k1", "name": "Create", "input": {"content": '{"a": 2}'}},
                ],
            },
        },
        {
            "type": "message",
            "id": "3",
            "parentId": "2",
            "message": {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "k1", "content": "  kept indent\n"}],
            },
        },
        {"type": "todo_state", "id": "t", "todos": []},
        {
            "type": "message",
            "id": "4",
            "parentId": "3",
            "message": {"role": "assistant", "content": [{"type": "text", "text": "Done."}]},
        },
    ],
    "hermes": [
        {
            "id": "h1",
            "source": "cli",
            "model": "m",
            "system_prompt": "Be exact.",
            "started_at": 1.0,
            "messages": [
                {"role": "user", "content": "Set a to 2"},
                {
                    "role": "assistant",
                    "content": "<think>Look first</think>Writing.",
                    "tool_calls": [
                        {
                            "id": "k1",
                            "type": "function",
                            "function": {"name": "write_file", "arguments": '{"text": "{\\"a\\": 2}"}'},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "k1", "tool_name": "write_file", "content": "  kept indent\n"},
                {"role": "assistant", "content": "Taken back.", "active": 0},
                {"role": "assistant", "content": "Done.", "active": 1},
            ],
        }
    ],
}


def _pi(cwd: str) -> list[Any]:
    def entry(number: int, role: str, content: list[dict[str, Any]], **extra: Any) -> dict[str, Any]:
        message = {"role": role, "content": content, **extra}
        return {"type": "message", "id": f"e{number}", "parentId": f"e{number - 1}", "message": message}

    call = {"type": "toolCall", "id": "k1", "name": "write", "arguments": {"content": '{"a": 2}'}}
    return [
        {"type": "session", "version": 3, "id": "p1", "cwd": cwd},
        {"type": "model_change", "id": "e0", "parentId": None, "modelId": "m"},
        entry(1, "user", [{"type": "text", "text": "Set a to 2"}, {"type": "image", "data": "x"}]),
        entry(2, "assistant", [{"type": "thinking", "thinking": "Look first"}, call], stopReason="toolUse"),
        entry(3, "toolResult", [{"type": "text", "text": "  kept indent\n"}], toolCallId="k1", toolName="write"),
        entry(4, "assistant", [{"type": "text", "text": "Done."}], stopReason="stop"),
    ]


SESSIONS["pi"] = _pi("/w")
SESSIONS["openclaw"] = _pi("/home/u/.openclaw/workspace")
