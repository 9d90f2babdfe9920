"""Builds the lines of Claude Code sessions by hand, so that every expectation can be read off the test."""

from __future__ import annotations

from typing import Any


def line(uuid: str, parent: str | None, kind: str, content: Any = None, **extra: Any) -> dict[str, Any]:
    """One line of a session; `message` fields come as `mid=` (message id) and `model=`."""
    message: dict[str, Any] = {"role": kind, "content": content}
    if "mid" in extra:
        message["id"] = extra.pop("mid")
    if "model" in extra:
        message["model"] = extra.pop("model")
    base = {"uuid": uuid, "parentUuid": parent, "type": kind, "sessionId": "s", "isSidechain": False}
    return {**base, **({"message": message} if content is not None else {}), **extra}


def text(value: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": value}]


def call(call_id: str, name: str = "Read", **arguments: Any) -> list[dict[str, Any]]:
    return [{"type": "tool_use", "id": call_id, "name": name, "input": arguments}]


def result(call_id: str, value: Any) -> list[dict[str, Any]]:
    return [{"type": "tool_result", "tool_use_id": call_id, "content": value}]
