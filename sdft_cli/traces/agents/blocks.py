"""Anthropic's content blocks, as OpenAI-style messages: calls, results and thoughts stand in `content` there."""

from __future__ import annotations

from typing import Any

from sdft_cli.traces.claude_code.lines import CALLS

_THOUGHTS = ("thinking", "redacted_thinking")


def _kinds(content: Any) -> list[str]:
    return [str(b.get("type")) for b in content if isinstance(b, dict)] if isinstance(content, list) else []


def _is_result(kind: str) -> bool:
    return kind.endswith("tool_result")


def system_messages(system: Any) -> list[dict[str, Any]]:
    """Return the system prompt that stands beside the messages, as a message."""
    return [{"role": "system", "content": system}] if isinstance(system, str | list) and system else []


def _assistant(raw: dict[str, Any], names: dict[str, str]) -> list[dict[str, Any]]:
    """One turn and the results of server tools, which stand in the middle of it: there the model read and went on."""
    turns: list[dict[str, Any]] = [{"role": "assistant", "content": [], "tool_calls": [], "reasoning": ""}]
    messages = [turns[0]]
    for block in raw["content"]:
        kind = str(block.get("type")) if isinstance(block, dict) else ""
        if kind in CALLS:
            names[str(block.get("id"))] = str(block.get("name"))
            function = {"name": block.get("name"), "arguments": block.get("input")}
            turns[-1]["tool_calls"].append({"id": block.get("id"), "function": function})
        elif kind in _THOUGHTS:
            thought = str(block.get("thinking") or "")
            turns[-1]["reasoning"] = "\n".join(t for t in (turns[-1]["reasoning"], thought) if t)
        elif _is_result(kind):
            turns.append({"role": "assistant", "content": [], "tool_calls": [], "reasoning": ""})
            messages += [_result(block, names), turns[-1]]
        elif kind != "text" or str(block.get("text") or "").strip():
            turns[-1]["content"].append(block)
    if len(turns) > 1 and not any(turns[-1][key] for key in ("content", "tool_calls", "reasoning")):
        messages.pop()
    return messages


def _result(block: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    call = str(block.get("tool_use_id"))
    return {"role": "tool", "tool_call_id": call, "name": names.get(call), "content": block.get("content")}


def expanded(messages: list[Any]) -> list[Any]:
    """Return the messages with those of content blocks in OpenAI's style; others as they are."""
    names: dict[str, str] = {}
    found: list[Any] = []
    for raw in messages:
        content = raw.get("content") if isinstance(raw, dict) else None
        kinds = _kinds(content)
        if _role(raw) == "assistant" and any(k in (*CALLS, *_THOUGHTS) or _is_result(k) for k in kinds):
            found += _assistant(raw, names)
        elif _role(raw) == "user" and any(_is_result(kind) for kind in kinds):
            results = [b for b in content or () if isinstance(b, dict) and _is_result(str(b.get("type")))]
            others = [b for b in content or () if b not in results]
            found += [_result(block, names) for block in results]
            found += [{"role": "user", "content": others}] if others else []
        else:
            found.append(raw)
    return found


def _role(raw: Any) -> Any:
    """Return the role that a message states, None if it is no object."""
    return raw.get("role") if isinstance(raw, dict) else None
