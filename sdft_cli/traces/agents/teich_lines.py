"""Which lines of an agent's session the model saw: the path through a tree of lines, cut at compactions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sdft_cli.traces.types import ReadReport

HEADERS = ("session", "session_start")
CODEX_CALLS = ("function_call", "custom_tool_call", "local_shell_call", "web_search_call")


@dataclass
class AgentLine:
    """A line of the file, or one that stands for a summary (`name` empty)."""

    name: str
    data: dict[str, Any]
    repeated: bool = False
    """Context that an earlier context of the same session holds already."""

    @property
    def body(self) -> dict[str, Any]:
        value = self.data.get("payload") or self.data.get("message")
        return value if isinstance(value, dict) else self.data

    @property
    def is_assistant(self) -> bool:
        return self.body.get("role") == "assistant" or self.body.get("type") in CODEX_CALLS


def tree_path(lines: Sequence[AgentLine], report: ReadReport) -> tuple[list[AgentLine], list[AgentLine]]:
    """Return the path from the root to the last line, and the lines on other branches.

    A parent is the nearest line above with that id, since Droid uses an id twice. Where there is none (a broken line),
    it is the line before. A file without parents is one path.
    """
    nodes = [x for x in lines if x.data.get("type") not in HEADERS and isinstance(x.data.get("id"), str)]
    nodes = [x for x in nodes if "parentId" in x.data or x.data.get("type") == "message"]
    if not any(x.data.get("parentId") for x in nodes):
        return list(lines), []
    above: dict[str, int] = {}
    parents: list[int] = []
    for position, node in enumerate(nodes):
        parent = node.data.get("parentId")
        parents.append(above.get(str(parent), -2) if parent else -1)
        above[str(node.data["id"])] = position
    path: set[int] = set()
    current = len(nodes) - 1
    while current >= 0:
        path.add(id(nodes[current]))
        if parents[current] == -2:
            report.notes["repaired_links"] += 1
        current = current - 1 if parents[current] == -2 else parents[current]
    in_tree = {id(x) for x in nodes}
    kept = [x for x in lines if id(x) not in in_tree or id(x) in path]
    return kept, [x for x in nodes if id(x) not in path]


def without_rolled_back(lines: Sequence[AgentLine]) -> tuple[list[AgentLine], list[AgentLine]]:
    """Take out the turns that Codex's `thread_rolled_back` events took back."""
    kept: list[AgentLine] = []
    dropped: list[AgentLine] = []
    for line in lines:
        kept.append(line)
        if line.data.get("type") == "event_msg" and line.body.get("type") == "thread_rolled_back":
            asked = [i for i, x in enumerate(kept) if _is_prompt(x)]
            turns = min(int(line.body.get("num_turns") or 0), len(asked))
            if turns:
                start = asked[-turns]
                dropped += [x for x in kept[start:-1] if x.data.get("type") == "response_item"]
                kept[start:-1] = [x for x in kept[start:-1] if x.data.get("type") != "response_item"]
    return kept, dropped


def _is_prompt(line: AgentLine) -> bool:
    """Say whether a Codex line is what the user typed, and no context that Codex wrote in the user's name."""
    if line.data.get("type") != "response_item" or line.body.get("role") != "user":
        return False
    text = json.dumps(line.body.get("content"), ensure_ascii=False)
    return not any(tag in text[:60] for tag in ("<environment_context>", "<user_instructions>"))


def _summary(line: AgentLine, kept: Sequence[AgentLine]) -> list[AgentLine]:
    """Return the lines that a new context begins with after a compaction: its summary and what it kept."""
    data, body = line.data, line.body
    if data.get("type") == "compacted":
        history = body.get("replacement_history")
        if not isinstance(history, list):
            content = [{"type": "input_text", "text": str(body.get("message") or "")}]
            history = [{"type": "message", "role": "user", "content": content}]
        return [AgentLine(line.name, {"type": "response_item", "payload": item}, True) for item in history]
    text = data.get("summary") or data.get("summaryText") or ""
    message = {"role": "user", "content": [{"type": "text", "text": str(text)}]}
    first = data.get("firstKeptEntryId")
    start = next((i for i, x in enumerate(kept) if first and x.data.get("id") == first), len(kept))
    again = [replace(x, repeated=True) for x in kept[start:]]
    return [AgentLine(line.name, {"type": "message", "message": message}, True), *again]


def cut_contexts(lines: Sequence[AgentLine], notes: Counter[str]) -> list[list[AgentLine]]:
    """Cut a conversation at its compactions; each context begins with the file's header lines."""
    headers = [x for x in lines if x.data.get("type") in ("session_meta", "turn_context", *HEADERS)]
    contexts: list[list[AgentLine]] = [[]]
    for line in lines:
        if str(line.data.get("type")) in ("compacted", "compaction", "compaction_state"):
            notes["compactions"] += 1
            contexts.append([*headers, *_summary(line, contexts[-1])])
        else:
            contexts[-1].append(line)
    return contexts
