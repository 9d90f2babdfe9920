"""Texts out, tokens in: teich arranges the tokens of a session, and then the texts take their places again.

Its converter strips texts and parses those that look like JSON. A token it leaves alone, and a token that does not come
back names the line whose text was dropped.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sdft_cli.traces.agents.teich_lines import HEADERS, AgentLine
from sdft_cli.traces.fields import IMAGE, parsed

_TEXTS = ("text", "thinking", "content", "output", "reasoning_content", "reasoning")
_IMAGES = ("image", "input_image", "image_url")
_RESULT_IDS = ("toolCallId", "tool_use_id", "tool_call_id")
_REASONING = ("thinking", "reasoning", "reasoning_content", "reasoning_text", "summary_text")
_TOKEN = re.compile("\ue000(\\d+)\ue001")
_MARKUP = re.compile(r"<(think|tool_call|tool_response)>(.*?)</\1>", re.DOTALL)
_THINKING = re.compile(r"<(think)>(.*?)</\1>", re.DOTALL)
_ARGUMENTS = "sdft_arguments"
_CONTAINERS = frozenset(
    {"message", "payload", "content", "summary", "messages", "tool_calls", "function", "output", "traces"}
    | {"base_instructions"}
)


@dataclass
class Vault:
    """The texts that were replaced by tokens, the line each came from, and the tokens that came back."""

    notes: Counter[str]
    values: list[Any] = field(default_factory=list)
    owners: list[AgentLine] = field(default_factory=list)
    reasoning: set[int] = field(default_factory=set)
    used: set[int] = field(default_factory=set)
    known: dict[tuple[int, str], int] = field(default_factory=dict)
    result_lines: dict[str, AgentLine] = field(default_factory=dict)

    def keep(self, value: Any, line: AgentLine, reasoning: bool = False) -> str:
        """Store a text (or the arguments of a call) and return its token; a line's equal texts share one."""
        key = (id(line), value if isinstance(value, str) else f"arguments {len(self.values)}")
        number = self.known.setdefault(key, len(self.values))
        if number == len(self.values):
            self.values.append(value)
            self.owners.append(line)
            if reasoning:
                self.reasoning.add(number)
        return f"\ue000{number}\ue001"

    def value(self, match: re.Match[str]) -> Any:
        number = int(match.group(1))
        self.used.add(number)
        return self.values[number]

    def text(self, text: str) -> str:
        """Put the texts back into a string of tokens."""
        return _TOKEN.sub(lambda match: str(self.value(match)), text)

    def lines(self, text: str) -> list[AgentLine]:
        """Return the lines that the tokens of a string came from."""
        return [self.owners[int(number)] for number in _TOKEN.findall(text)]

    def arguments(self, value: Any) -> Any:
        """Put the arguments of a call back."""
        if isinstance(value, dict) and set(value) == {_ARGUMENTS}:
            match = _TOKEN.fullmatch(str(value[_ARGUMENTS]))
            return self.value(match) if match else value
        if isinstance(value, dict):
            return {key: self.arguments(item) for key, item in value.items()}
        return self.text(value) if isinstance(value, str) else value

    def lost(self) -> int:
        """Count the texts that did not come back; reasoning is dropped later anyway."""
        return len(set(range(len(self.values))) - self.used - self.reasoning)


def as_object(value: Any) -> dict[str, Any] | None:
    """Return arguments as a dictionary, also where they are its JSON text; None if they are no object."""
    if isinstance(value, str):
        try:
            value = parsed(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def _kept_arguments(value: Any, line: AgentLine, vault: Vault) -> Any:
    as_dict = as_object(value)
    if as_dict is None:
        return value
    kept = {_ARGUMENTS: vault.keep(as_dict, line)}
    return json.dumps(kept) if isinstance(value, str) else kept


def _markup(text: str, tags: re.Pattern[str], line: AgentLine, vault: Vault) -> str:
    """Keep the parts of a Hermes text in which reasoning (and calls and results) are marked with tags."""

    def part(match: re.Match[str]) -> str:
        tag, inner = match.groups()
        body = as_object(inner)
        if tag == "tool_call" and body is not None:
            inner = json.dumps({**body, "arguments": _kept_arguments(body.get("arguments") or {}, line, vault)})
        elif tag == "tool_response" and body is not None and isinstance(body.get("content"), str):
            inner = json.dumps({**body, "content": vault.keep(body["content"], line)})
        elif inner.strip():
            inner = vault.keep(inner, line, tag == "think")
        return f"<{tag}>{inner}</{tag}>"

    parts, end = [], 0
    for match in tags.finditer(text):
        parts += [text[end : match.start()], part(match)]
        end = match.end()
    parts.append(text[end:])
    return "".join(vault.keep(p, line) if i % 2 == 0 and p.strip() else p for i, p in enumerate(parts))


def _protect(value: Any, line: AgentLine, vault: Vault, reasoning: bool = False) -> Any:
    """Return a copy of a line's conversation in which every text is a token."""
    if isinstance(value, list):
        return [_protect(item, line, vault, reasoning) for item in value]
    if not isinstance(value, dict):
        return value
    kind = str(value.get("type"))
    if kind in _IMAGES:
        vault.notes["images"] += 1
        return {"type": "text", "text": vault.keep(IMAGE, line)}
    for key in _RESULT_IDS:
        if isinstance(value.get(key), str):
            vault.result_lines[value[key]] = line
    if kind.endswith("_output") and isinstance(value.get("call_id"), str):
        vault.result_lines[value["call_id"]] = line
    protected: dict[str, Any] = {}
    for key, item in value.items():
        hidden = reasoning or kind in _REASONING or key in _REASONING
        if kind == "custom_tool_call" and key == "input" and isinstance(item, str):
            protected[key] = vault.keep(item, line)
        elif key in ("arguments", "input"):
            protected[key] = _kept_arguments(item, line, vault)
        elif key == "value" and "from" in value and isinstance(item, str):
            protected[key] = _markup(item, _MARKUP, line, vault)
        elif key == "content" and value.get("role") == "assistant" and isinstance(item, str) and "<think>" in item:
            protected[key] = _markup(item, _THINKING, line, vault)
        elif key in _TEXTS and isinstance(item, str):
            protected[key] = vault.keep(item, line, hidden) if item.strip() else item
        else:
            protected[key] = _protect(item, line, vault, hidden) if key in _CONTAINERS else item
    return protected


def _split_results(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Split a user line that holds tool results and text: teich reads only the results of such a line."""
    message = data.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(message, dict) or not isinstance(content, list):
        return [data]
    results = [b for b in content if isinstance(b, dict) and b.get("type") == "tool_result"]
    others = [b for b in content if b not in results]
    if not results or not others:
        return [data]
    return [{**data, "message": {**message, "content": part}} for part in (results, others)]


def protected_events(lines: Sequence[AgentLine], vault: Vault) -> list[dict[str, Any]]:
    """Return what teich is given: the lines with their texts replaced."""
    events = []
    for line in lines:
        data = line.data
        if data.get("type") in ("event_msg", "turn_context") or data.get("type") in HEADERS:
            events.append(data)
        elif line.body.get("visibility") != "user_only":  # Droid shows these to its user, not to the model
            events += [_protect(part, line, vault) for part in _split_results(data)]
    return events
