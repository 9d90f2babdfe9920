"""Native Claude Code JSONL -> `Session`.

A file is a graph of lines (`uuid`, `parentUuid`). It is read in four steps:

1. `_classify` gives every line a kind: assistant or user conversation, compaction boundary, or a named other kind
   that is transparent (progress, hook summaries, snapshots, meta lines, echoes of local commands).
2. `_build_nodes` joins the lines of one API message (same `message.id`) into one node and hangs each tool result on
   the node that made the call, so parallel calls are no forks.
3. `_contexts` cuts the graph into trees at compaction boundaries. The path to the last node of a tree is what the
   model saw; other branches are abandoned, and counted.
4. `_messages` writes a path down as messages; a turn's tool results follow it in the order of its calls.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdft_cli.records import Message, Rejection, Session, ToolCall
from sdft_cli.traces.jsonl import read_lines
from sdft_cli.traces.types import FileSessions, ReadReport

FORMAT = "claude-code"
IMAGE_PLACEHOLDER = "[image]"
ABANDONED = "abandoned_branch"

_LOCAL_ECHOES = (
    "<local-command-stdout>",
    "<local-command-stderr>",
    "<local-command-caveat>",
    "<bash-input>",
    "<bash-stdout>",
    "<bash-stderr>",
)
_COMMAND_ECHOES = ("<command-name>", "<command-message>")
_KNOWN_TYPES = frozenset(
    {"user", "assistant", "system", "summary", "progress", "file-history-snapshot", "queue-operation", "attachment"}
)


def looks_like(objects: Iterable[dict[str, Any]]) -> bool:
    """Say whether these first lines of a file are Claude Code's."""
    return any(
        obj.get("type") in _KNOWN_TYPES
        and ("uuid" in obj or "leafUuid" in obj or "sessionId" in obj or "snapshot" in obj)
        for obj in objects
    )


@dataclass
class _Line:
    number: int
    data: dict[str, Any]
    kind: str

    @property
    def uuid(self) -> str | None:
        value = self.data.get("uuid")
        return value if isinstance(value, str) else None

    @property
    def parent(self) -> str | None:
        value = self.data.get("parentUuid")
        return value if isinstance(value, str) else None

    @property
    def message(self) -> dict[str, Any]:
        value = self.data.get("message")
        return value if isinstance(value, dict) else {}

    @property
    def blocks(self) -> list[dict[str, Any]]:
        """The content as blocks; a plain string is one text block."""
        content = self.message.get("content")
        if isinstance(content, str):
            return [{"type": "text", "text": content}]
        return [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []


@dataclass
class _Node:
    """One message of the conversation: a user line, or all lines of one assistant message."""

    key: str
    role: str
    lines: list[_Line]
    parent: _Node | None = None
    top_line: str | None = None
    """For a node without parent: the first line above it, whatever its kind. Branches that share it are a fork."""
    results: dict[str, list[_Line]] = field(default_factory=dict)
    """Tool results of this node's calls, by call id, in file order."""

    @property
    def order(self) -> int:
        """The position of the node's last line in the file, results included."""
        return max(line.number for line in [*self.lines, *(r for rs in self.results.values() for r in rs)])


def _starts_with(line: _Line, prefixes: tuple[str, ...]) -> bool:
    blocks = line.blocks
    text = blocks[0].get("text") if blocks else None
    return isinstance(text, str) and text.lstrip().startswith(prefixes)


def _classify(data: dict[str, Any], previous: _Line | None) -> str:
    """Name what a line is; only `assistant`, `user` and `boundary` shape the conversation."""
    kind = data.get("type")
    line = _Line(0, data, "")
    if kind == "assistant" and line.blocks:
        return "assistant"
    if kind == "user" and line.message:
        if data.get("isMeta"):
            # The prompt behind a slash command is a meta line, but it is what the model was asked to do.
            expands = previous is not None and previous.kind == "command_echo" and previous.uuid == line.parent
            is_text = isinstance(line.message.get("content"), list)
            return "user" if expands and is_text else "meta"
        if _starts_with(line, _LOCAL_ECHOES):
            return "local_command"
        if _starts_with(line, _COMMAND_ECHOES):
            return "command_echo"
        return "user"
    if kind == "system":
        subtype = data.get("subtype")
        if subtype == "compact_boundary":
            return "boundary"
        return {"stop_hook_summary": "hook_summary", "local_command": "local_command"}.get(str(subtype), "system")
    if kind in ("assistant", "user"):
        return "empty"
    names = {"file-history-snapshot": "snapshot", "queue-operation": "queue"}
    return names.get(str(kind), str(kind) if kind in _KNOWN_TYPES else "unknown_type")


def _read(path: Path, report: ReadReport) -> list[_Line]:
    """Read the lines of a file; count those that carry no conversation and those that repeat an earlier `uuid`."""
    lines: list[_Line] = []
    seen: set[str] = set()
    previous: _Line | None = None
    for number, data in read_lines(path):
        if data is None:
            report.lines["broken"] += 1
            report.broken.append(f"{path.name}:{number}")
            continue
        line = _Line(number, data, _classify(data, previous))
        previous = line
        if line.uuid is None:
            report.lines[line.kind if line.kind not in ("user", "assistant", "boundary") else "no_uuid"] += 1
        elif line.uuid in seen:
            report.lines["duplicate"] += 1
        else:
            seen.add(line.uuid)
            lines.append(line)
    return lines


def _result_ids(line: _Line) -> list[str]:
    return [str(b.get("tool_use_id")) for b in line.blocks if b.get("type") == "tool_result"]


def _call_ids(line: _Line) -> list[str]:
    return [str(b.get("id")) for b in line.blocks if b.get("type") == "tool_use"]


class _Graph:
    """The conversation graph of one chain (the main one, or one subagent's) of a file."""

    def __init__(self, lines: list[_Line], report: ReadReport) -> None:
        self.lines = lines
        self.report = report
        self.by_uuid = {line.uuid: line for line in lines}
        self.node_of: dict[str | None, _Node] = {}
        self.nodes: list[_Node] = []
        self._build_nodes()
        self._link()

    def _build_nodes(self) -> None:
        owner: dict[str, _Node] = {}
        messages: dict[str, _Node] = {}
        for line in self.lines:
            if line.kind == "assistant":
                key = str(line.message.get("id") or line.uuid)
                node = messages.get(key)
                if node is None:
                    node = messages[key] = _Node(key, "assistant", [])
                    self.nodes.append(node)
                node.lines.append(line)
                owner.update((call, node) for call in _call_ids(line))
            elif line.kind in ("user", "boundary"):
                results = _result_ids(line)
                node = next((owner[r] for r in results if r in owner), None)
                if node is not None:
                    for result in results:
                        node.results.setdefault(result, []).append(line)
                else:
                    self.report.notes["orphan_tool_results"] += len(results)
                    node = _Node(str(line.uuid), line.kind, [line])
                    self.nodes.append(node)
            else:
                continue
            self.node_of[line.uuid] = node

    def _link(self) -> None:
        """Give each node its parent: the nearest conversation line above its first line.

        A parent that stands later in the file (a damaged file) is linked last, and only if it closes no cycle.
        """
        forward: list[tuple[_Node, _Node]] = []
        previous: _Node | None = None
        for node in self.nodes:
            node.top_line = node.lines[0].uuid
            if node.role != "boundary":  # a boundary starts a new context
                parent = self._parent_of(node, previous)
                if parent is not None and parent.lines[0].number > node.lines[0].number:
                    forward.append((node, parent))
                else:
                    node.parent = parent
            previous = node
        for node, parent in forward:
            if not self._is_above(node, parent):
                node.parent = parent

    def _parent_of(self, node: _Node, previous: _Node | None) -> _Node | None:
        uuid = node.lines[0].parent
        visited: set[str] = set()
        while uuid is not None:
            parent = self.node_of.get(uuid)
            if parent is not None and parent is not node:
                return parent
            if uuid in visited or uuid not in self.by_uuid:
                # The parent line is broken or missing: the order of lines decides.
                self.report.notes["repaired_links"] += 1
                return previous
            visited.add(uuid)
            node.top_line = uuid
            uuid = self.by_uuid[uuid].parent
        return None

    @staticmethod
    def _is_above(node: _Node, start: _Node) -> bool:
        """Say whether `node` is `start` or an ancestor of it."""
        current: _Node | None = start
        while current is not None:
            if current is node:
                return True
            current = current.parent
        return False

    def contexts(self) -> list[tuple[list[_Node], list[_Node]]]:
        """Return `(path, abandoned nodes)` for each tree, oldest first."""
        tree_of: dict[int, str | None] = {}
        trees: dict[str | None, list[_Node]] = {}
        for node in self.nodes:
            chain = [node]
            while chain[-1].parent is not None and id(chain[-1]) not in tree_of:
                chain.append(chain[-1].parent)
            tree = tree_of.get(id(chain[-1]), chain[-1].top_line)
            tree_of.update((id(member), tree) for member in chain)
            trees.setdefault(tree, []).append(node)
        logical = {n.lines[0].data.get("logicalParentUuid") for n in self.nodes if n.role == "boundary"}
        ends = {id(self.node_of[uuid]) for uuid in logical if uuid in self.node_of}
        found = []
        for members in trees.values():
            leaf = max((n for n in members if id(n) in ends), key=lambda n: n.order, default=None)
            leaf = leaf or max(members, key=lambda n: n.order)
            path: list[_Node] = []
            current: _Node | None = leaf
            while current is not None:
                path.append(current)
                current = current.parent
            path.reverse()
            on_path = {id(n) for n in path}
            found.append((path, [n for n in members if id(n) not in on_path]))
        return found


def _text_of(content: Any, notes: Counter[str]) -> str:
    """Flatten the content of a message or of a tool result to text; images become a counted placeholder."""
    if isinstance(content, str):
        return content
    parts: list[str] = []
    for block in content if isinstance(content, list) else []:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text":
            parts.append(str(block.get("text") or ""))
        elif kind == "image":
            notes["images"] += 1
            parts.append(IMAGE_PLACEHOLDER)
        elif kind == "tool_reference":
            notes["tool_references"] += 1
            parts.append(f"[tool: {block.get('tool_name', '')}]")
        elif kind not in ("tool_result", "tool_use", "thinking", "redacted_thinking"):
            notes["unknown_blocks"] += 1
    return "\n".join(parts)


def _assistant(node: _Node, notes: Counter[str]) -> Message:
    """Join the lines of one API message: text and reasoning in order, each call once."""
    texts: list[str] = []
    reasoning: list[str] = []
    calls: dict[str, ToolCall] = {}
    for line in node.lines:
        for block in line.blocks:
            kind = block.get("type")
            if kind == "thinking":
                reasoning.append(str(block.get("thinking") or ""))
            elif kind == "redacted_thinking":
                notes["redacted_thinking"] += 1
            elif kind == "tool_use":
                call_id, arguments = str(block.get("id")), block.get("input")
                text = json.dumps(arguments if isinstance(arguments, dict) else {}, ensure_ascii=False)
                if not isinstance(arguments, dict):
                    notes["non_object_arguments"] += 1
                calls[call_id] = ToolCall(call_id, str(block.get("name") or ""), text)
            else:
                texts.append(_text_of([block], notes))
    first = node.lines[0]
    status = None
    if first.data.get("isApiErrorMessage"):
        status = "api_error"
    elif first.message.get("model") == "<synthetic>":
        status = "synthetic"
    content = "\n".join(t for t in texts if t.strip())
    return Message("assistant", content, tuple(calls.values()), reasoning="\n".join(reasoning), status=status)


def _results(node: _Node, names: dict[str, str], notes: Counter[str]) -> list[Message]:
    """The tool messages after an assistant turn, in the order of its calls, then any text that came along."""
    messages: list[Message] = []
    extra: list[Message] = []
    for call_id in names:
        lines = node.results.get(call_id)
        if not lines:
            notes["unanswered_calls"] += 1
            continue
        notes["repeated_tool_results"] += len(lines) - 1
        messages.extend(_tool_messages(lines[-1], names, notes, only=call_id))
    for line in {id(line): line for lines in node.results.values() for line in lines}.values():
        text = _text_of([b for b in line.blocks if b.get("type") != "tool_result"], notes)
        if text.strip():
            extra.append(Message("user", text))
    return messages + extra


def _tool_messages(line: _Line, names: dict[str, str], notes: Counter[str], only: str | None = None) -> list[Message]:
    found = []
    for block in line.blocks:
        call_id = str(block.get("tool_use_id"))
        if block.get("type") == "tool_result" and only in (None, call_id):
            text = _text_of(block.get("content"), notes)
            found.append(Message("tool", text, tool_call_id=call_id, name=names.get(call_id)))
    return found


def _messages(path: list[_Node], report: ReadReport) -> list[Message]:
    messages: list[Message] = []
    for node in path:
        if node.role == "assistant":
            message = _assistant(node, report.notes)
            messages.append(message)
            messages.extend(_results(node, {c.id: c.name for c in message.tool_calls}, report.notes))
        elif node.role == "user":
            line = node.lines[0]
            messages.extend(_tool_messages(line, {}, report.notes))
            text = _text_of([b for b in line.blocks if b.get("type") != "tool_result"], report.notes)
            if text.strip():
                messages.append(Message("user", text))
    return messages


def _count_lines(graph: _Graph, contexts: list[tuple[list[_Node], list[_Node]]], report: ReadReport) -> None:
    """Account for every line that has a `uuid`: conversation, abandoned, or its named other kind."""
    abandoned = {id(node) for _, others in contexts for node in others}
    for line in graph.lines:
        node = graph.node_of.get(line.uuid)
        if node is None:
            report.lines[line.kind] += 1
        elif id(node) in abandoned:
            report.lines["abandoned"] += 1
        else:
            report.lines["boundary" if line.kind == "boundary" else "conversation"] += 1


def _chains(lines: list[_Line]) -> dict[str, list[_Line]]:
    """Split a file into the main chain (key "") and one chain per subagent."""
    chains: dict[str, list[_Line]] = {}
    agent_of: dict[str | None, str] = {}
    for line in lines:
        key = ""
        if line.data.get("isSidechain"):
            key = str(line.data.get("agentId") or agent_of.get(line.parent) or line.uuid)
            agent_of[line.uuid] = key
        chains.setdefault(key, []).append(line)
    return chains


def _first(lines: list[_Line], key: str, default: str) -> str:
    return next((str(line.data[key]) for line in lines if isinstance(line.data.get(key), str)), default)


def read_claude_code(path: Path) -> FileSessions:
    """Read one Claude Code session file.

    Returns one `Session` per context that holds an assistant turn: the main conversation, each compacted
    continuation (`<id>#2`, ...), each subagent (`<id>/agent-<key>`). All share one `group`. The report accounts for
    every line.
    """
    report = ReadReport()
    lines = _read(path, report)
    sessions: list[Session] = []
    for agent, chain in _chains(lines).items():
        graph = _Graph(chain, report)
        contexts = graph.contexts()
        _count_lines(graph, contexts, report)
        group = _first(chain, "sessionId", path.stem)
        base = f"{group}/agent-{agent}" if agent else group
        models = Counter(str(line.message.get("model")) for line in chain if line.kind == "assistant")
        number = 0
        for route, abandoned in contexts:
            report.lost_turns.extend(
                Rejection(f"{base}/abandoned-{node.key}", base, None, ABANDONED)
                for node in abandoned
                if node.role == "assistant"
            )
            messages = _messages(route, report)
            if not any(m.role == "assistant" for m in messages):
                report.notes["contexts_without_turns"] += 1
                continue
            number += 1
            session_id = base if number == 1 else f"{base}#{number}"
            metadata = {"format": FORMAT, "file": path.name, "models": sorted(models), "context": number}
            if agent:
                metadata["agent"] = agent
            sessions.append(Session(session_id, tuple(messages), group=group, metadata=metadata))
    return FileSessions(sessions, report)
