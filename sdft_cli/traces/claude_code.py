"""Native Claude Code JSONL -> `Session`: one session per context that the model saw.

`claude_code_lines` says what each line is, `claude_code_graph` which messages follow each other in which context, and
this module writes a context down as messages. `docs/claude-code-sessions.md` has the reasons.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sdft_cli.records import Message, Rejection, Session, ToolCall
from sdft_cli.records.reasons import ABANDONED_BRANCH, API_ERROR, INTERRUPTED, SYNTHETIC, TRUNCATED
from sdft_cli.traces.claude_code_facts import prompt_tokens, untested_versions
from sdft_cli.traces.claude_code_graph import Context, Graph, Node
from sdft_cli.traces.claude_code_lines import Block, Line, SeenLines, blocks_of, chains, group_of, read, text_field
from sdft_cli.traces.types import FileSessions, ReadReport

FORMAT = "claude-code"
IMAGE_PLACEHOLDER = "[image]"
DOCUMENT_PLACEHOLDER = "[document]"
CLEARED_RESULT = "[Old tool result content cleared]"
"""What Claude Code shows in place of a result that a microcompaction removed."""
_CALLS = ("tool_use", "server_tool_use", "mcp_tool_use")


class _Messages:
    """Writes nodes down as messages, with the notes and the replaced tool results of one file."""

    def __init__(self, notes: Counter[str], replaced: dict[str, str]) -> None:
        self.notes = notes
        self.replaced = replaced

    def text_of(self, blocks: list[Block]) -> str:
        """Flatten blocks to text; images and documents become counted placeholders."""
        return "\n".join(part for block in blocks if (part := self._block_text(block)) is not None)

    def _block_text(self, block: Block) -> str | None:
        kind = text_field(block, "type")
        if kind == "text":
            return text_field(block, "text")
        if kind == "image":
            self.notes["images"] += 1
            return IMAGE_PLACEHOLDER
        if kind == "document":
            self.notes["documents"] += 1
            return DOCUMENT_PLACEHOLDER
        if kind == "tool_reference":
            self.notes["tool_references"] += 1
            return f"[tool: {text_field(block, 'tool_name')}]"
        if kind == "web_search_result":
            return f"{text_field(block, 'title')}\n{text_field(block, 'url')}"
        self.notes["unknown_blocks"] += 1
        return None

    def messages(self, context: Context) -> list[Message]:
        """Write a context down. Neighbouring messages of the user are one message, as in the API call."""
        messages: list[Message] = []
        for node in context.path:
            written = self._assistant(node) if node.role == "assistant" else self._user(node.lines)
            for message in written:
                if message.role == "user" and messages and messages[-1].role == "user":
                    message = replace(message, content=f"{messages.pop().content}\n{message.content}")
                messages.append(message)
        return messages

    def _user(self, lines: list[Line]) -> list[Message]:
        """The text of lines of the user's side; a result whose call is missing stays a tool message."""
        written: list[Message] = []
        for line in lines:
            blocks = line.blocks
            written.extend(self._tool(b, None, frozenset()) for b in blocks if b.get("type") == "tool_result")
            text = self.text_of([b for b in blocks if b.get("type") != "tool_result"])
            if text.strip():
                written.append(Message("user", text))
        return written

    def _tool(self, block: Block, name: str | None, cleared: frozenset[str]) -> Message:
        call = text_field(block, "tool_use_id")
        if call in cleared:
            text = CLEARED_RESULT
        else:
            text = self.replaced.get(call) or self.text_of(blocks_of(block.get("content")))
        return Message("tool", text, tool_call_id=call, name=name)

    def _assistant(self, node: Node) -> list[Message]:
        """One API message and the results of its calls.

        It is one assistant message, unless a server tool answered in the middle of it: then the model read a result
        and went on, which is two turns with a tool message between them.
        """
        status = self._status(node)
        parts = [_TurnParts(seen_tokens=None if node.repeats else prompt_tokens(node.lines, self.notes))]
        written: list[Message] = []
        names: dict[str, str] = {}
        for block in (block for line in node.lines for block in line.blocks):
            kind = text_field(block, "type")
            if kind == "thinking":
                parts[-1].reasoning.append(text_field(block, "thinking"))
            elif kind == "redacted_thinking":
                self.notes["redacted_thinking"] += 1
            elif kind in _CALLS:
                call, whole = self._call(block)
                parts[-1].calls[call.id] = call
                names[call.id] = call.name
                status = status or (None if whole else TRUNCATED.key)
            elif kind.endswith("tool_result"):
                self.notes["server_tool_results"] += 1
                call_id = text_field(block, "tool_use_id")
                written += [parts[-1].message(status), self._tool(block, names.pop(call_id, None), node.cleared)]
                parts.append(_TurnParts())
            elif (text := self._block_text(block)) is not None:
                parts[-1].texts.append(text)
        if not written or parts[-1] != _TurnParts():
            written.append(parts[-1].message(status))
        return written + self._results(node, names)

    @staticmethod
    def _status(node: Node) -> str | None:
        if node.repeats:
            return "repeated"
        if node.lines[0].message.get("model") == "<synthetic>":
            return SYNTHETIC.key
        return INTERRUPTED.key if node.interrupted else TRUNCATED.key if node.truncated else None

    def _call(self, block: Block) -> tuple[ToolCall, bool]:
        """Return a call, and whether its arguments are whole: a cut-off answer may leave text instead of an object."""
        arguments = block.get("input")
        call, name = text_field(block, "id"), text_field(block, "name")
        try:
            if isinstance(arguments, dict):
                return ToolCall(call, name, json.dumps(arguments, ensure_ascii=False)), True
        except RecursionError:
            self.notes["too_deep_arguments"] += 1
        else:
            self.notes["non_object_arguments"] += 1
        return ToolCall(call, name, "{}"), False

    def _results(self, node: Node, names: dict[str, str]) -> list[Message]:
        """The tool messages after an assistant turn, in the order of its calls, then any text that came along."""
        written: list[Message] = []
        for call, name in names.items():
            lines = node.results.get(call)
            if not lines:
                self.notes["unanswered_calls"] += 1
                continue
            self.notes["repeated_tool_results"] += len(lines) - 1
            blocks = [b for b in lines[-1].blocks if text_field(b, "tool_use_id") == call]
            written.extend(self._tool(b, name, node.cleared) for b in blocks)
        for line in {line.number: line for lines in node.results.values() for line in lines}.values():
            text = self.text_of([b for b in line.blocks if b.get("type") != "tool_result"])
            if text.strip():
                written.append(Message("user", text))
        return written


@dataclass
class _TurnParts:
    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: dict[str, ToolCall] = field(default_factory=dict)
    seen_tokens: int | None = None

    def message(self, status: str | None) -> Message:
        content = "\n".join(t for t in self.texts if t.strip())
        reasoning = "\n".join(self.reasoning)
        calls = tuple(self.calls.values())
        return Message("assistant", content, calls, reasoning=reasoning, status=status, seen_tokens=self.seen_tokens)


def _replaced_results(lines: list[Line]) -> dict[str, str]:
    """Return what Claude Code showed instead of large tool results, by call id."""
    replacements = {}
    for line in lines:
        listed = line.data.get("replacements") if line.kind == "replacement" else None
        for item in listed if isinstance(listed, list) else []:
            if isinstance(item, dict) and text_field(item, "replacement"):
                replacements[text_field(item, "toolUseId")] = text_field(item, "replacement")
    return replacements


def _account(context: Context, fates: dict[int, str], kept: bool) -> None:
    """Give each line of a context its fate; a line that two contexts show belongs to the first."""
    for node in context.path:
        for line in node.all_lines if node.copy_of is None else ():
            if node.role == "boundary":
                fate = "boundary"
            else:
                fate = "duplicate" if line.repeats else "conversation" if kept else "no_turns"
            fates.setdefault(line.number, fate)
    for node in context.abandoned:
        for line in node.all_lines if node.copy_of is None else ():
            fates.setdefault(line.number, "duplicate" if line.repeats else "abandoned")


def _lost(context: Context, base: str) -> list[Rejection]:
    return [
        Rejection(f"{base}/abandoned-{node.key}", base, None, ABANDONED_BRANCH.key)
        for node in context.abandoned
        if node.role == "assistant" and not node.repeats
    ]


def _errors(lines: list[Line], base: str) -> list[Rejection]:
    """API errors stand where a turn should be, but Claude Code does not send them back: they are in no context."""
    errors = (line for line in lines if line.kind == "api_error" and not line.repeats)
    return [Rejection(f"{base}/error-{line.uuid}", base, None, API_ERROR.key) for line in errors]


def _chain_sessions(lines: list[Line], agent: str, path: Path, report: ReadReport, writer: _Messages) -> list[Session]:
    """Read one chain of a file: the main one (`agent` is ""), or a subagent's."""
    group = group_of(lines, path.stem)
    base = f"{group}/agent-{agent}" if agent else group
    models = sorted({text_field(line.message, "model") for line in lines if line.kind == "assistant"} - {""})
    project = next((cwd for line in lines if isinstance(cwd := line.data.get("cwd"), str)), None)
    report.lost_turns.extend(_errors(lines, base))
    sessions: list[Session] = []
    for context in Graph(lines, report.notes).contexts():
        report.lost_turns.extend(_lost(context, base))
        kept = any(node.role == "assistant" and not node.repeats for node in context.path)
        _account(context, report.fates, kept)
        if not kept:
            report.notes["contexts_without_turns"] += 1
            continue
        number = len(sessions) + 1
        metadata: dict[str, Any] = {"format": FORMAT, "file": path.name, "models": models, "context": number}
        if agent:
            metadata["agent"] = agent
        if project:
            metadata["project"] = project
        session_id = base if number == 1 else f"{base}#{number}"
        sessions.append(Session(session_id, tuple(writer.messages(context)), group=group, metadata=metadata))
    for line in lines:
        report.fates.setdefault(line.number, "duplicate" if line.repeats else line.kind)
    return sessions


def read_claude_code(path: Path, seen: SeenLines | None = None) -> FileSessions:
    """Read one Claude Code session file.

    Returns one `Session` per context that holds an assistant turn of its own: the main conversation, each compacted
    continuation (`<id>#2`, ...), each subagent (`<id>/agent-<key>`). All share one `group`. `report.fates` says what
    became of every non-blank line, and `report.lines` counts that.

    `seen`: the lines of the files of the same source that were read before. Turns that one of them holds are not
    counted again: they are context only (`status` is "repeated"), and `seen` joins the groups.
    """
    report = ReadReport()
    lines = read(path, report)
    report.unknown.update(untested_versions(lines))
    if seen is not None:
        for line in lines:
            line.repeats = "uuid" in line.data and seen.repeats(line, group_of([line], path.stem), path)
    writer = _Messages(report.notes, _replaced_results(lines))
    sessions = [
        session
        for agent, chain in chains(lines).items()
        for session in _chain_sessions(chain, agent, path, report, writer)
    ]
    report.lines.update(report.fates.values())
    return FileSessions(sessions, report)
