"""A context as messages: texts, calls as they were sent, results, and why a turn is no reference."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sdft_cli.records import Message, ToolCall
from sdft_cli.records.reasons import CUT_CONTEXT, INTERRUPTED, SYNTHETIC, TRUNCATED
from sdft_cli.traces.claude_code.attachments import Block, blocks_of
from sdft_cli.traces.claude_code.calls import has_plan_files, sent_arguments, wire_inputs, wrote_a_plan_file
from sdft_cli.traces.claude_code.facts import prompt_tokens
from sdft_cli.traces.claude_code.graph import Context, Node
from sdft_cli.traces.claude_code.lines import CALLS, Line
from sdft_cli.traces.fields import DOCUMENT, IMAGE, object_of, text_of

CLEARED_RESULT = "[Old tool result content cleared]"
"""What Claude Code shows in place of a result that a microcompaction removed."""
_RESULTS = ("_result", "_error")
"""How the types of blocks end that stand in the result of a server tool."""
_SAID = ("title", "url", "text", "stdout", "stderr", "error_code")
_PARTS = ("content", "lines", "tool_references")
"""Where the words of such a block stand, and its parts."""
NO_CONTENT = "(no content)"
"""What Claude Code puts in the place of an answer without text."""


class Writer:
    """Writes nodes down as messages.

    `lines`: those of the file, and before them what a chain goes on from; tool results are replaced as they say.
    """

    def __init__(self, notes: Counter[str], lines: Sequence[Line]) -> None:
        self.notes = notes
        self.replaced = _replaced_results(lines)
        self.plan_file_written = wrote_a_plan_file(lines)

    def flat(self, blocks: list[Block], inside: bool = False) -> str:
        """Flatten blocks to text; images and documents become counted placeholders. `inside`: of a block's parts."""
        return "\n".join(part for block in blocks if (part := self._block_text(block, inside)) is not None)

    def _block_text(self, block: Block, inside: bool = False) -> str | None:
        kind = text_of(block, "type")
        if kind == "text":
            return text_of(block, "text")
        if kind == "image":
            self.notes["images"] += 1
            return IMAGE
        if kind == "document":
            return self._document(block)
        if kind == "tool_reference":
            self.notes["tool_references"] += 1
            return f"[tool: {text_of(block, 'tool_name')}]"
        found = self._result_text(block) if kind.endswith(_RESULTS) and not inside else None
        self.notes["unknown_blocks"] += found is None
        return found

    def _document(self, block: Block) -> str:
        source = object_of(block, "source")
        if text_of(source, "type") == "text":
            return text_of(source, "data")
        self.notes["documents"] += 1
        return DOCUMENT

    def _result_text(self, block: Block) -> str | None:
        """Return what the result of a server tool says, one part a line; None if it says nothing that is known."""
        said = [block[key] for key in _SAID if isinstance(block.get(key), str)]
        parts = [part for key in _PARTS for part in blocks_of(block.get(key))]
        if not said and not parts:
            return None
        return "\n".join(text for text in (*said, self.flat(parts, inside=True)) if text)

    def messages(self, context: Context) -> list[Message]:
        """Write a context down. Neighbouring messages of the user are one message, as in the API call."""
        messages: list[Message] = []
        for node in context.path:
            if node.role == "assistant":
                written = self._assistant(node, self._status(node, context))
            else:
                written = self._user(node.lines)
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
            text = self.flat([b for b in blocks if b.get("type") != "tool_result"])
            if text.strip():
                written.append(Message("user", text))
        return written

    def _tool(self, block: Block, call: ToolCall | None, cleared: frozenset[str]) -> Message:
        raw = text_of(block, "tool_use_id")
        if raw in cleared:
            text = CLEARED_RESULT
        else:
            text = self.replaced.get(raw) or self.flat(blocks_of(block.get("content")))
        return Message("tool", text, tool_call_id=call.id if call else raw, name=call.name if call else None)

    def _assistant(self, node: Node, status: str | None) -> list[Message]:
        """One API message and the results of its calls.

        It is one assistant message, unless a server tool answered in the middle of it: then the model read a result
        and went on, which is two turns with a tool message between them.
        """
        blocks = _without_repeats(block for line in node.lines for block in line.blocks)
        ids = Counter(text_of(block, "id") for block in blocks if block.get("type") in CALLS)
        wire = {call: sent for call, sent in wire_inputs(node.lines, self.notes).items() if ids[call] == 1}
        parts = [_TurnParts(seen_tokens=None if status == "repeated" else prompt_tokens(node.lines, self.notes))]
        written: list[Message] = []
        waiting: list[tuple[str, ToolCall]] = []
        taken: Counter[str] = Counter()
        plan_files = has_plan_files(node.lines[0], self.plan_file_written)
        for block in blocks:
            kind = text_of(block, "type")
            if kind == "thinking":
                parts[-1].reasoning.append(text_of(block, "thinking"))
            elif kind == "redacted_thinking":
                self.notes["redacted_thinking"] += 1
            elif kind in CALLS:
                call, whole = self._call(block, sent_arguments(block, wire, plan_files))
                taken[call.id] += 1
                named = call if taken[call.id] == 1 else replace(call, id=f"{call.id or 'call'}~{taken[call.id]}")
                parts[-1].calls.append(named)
                waiting.append((call.id, named))
                status = status or (None if whole else TRUNCATED.key)
            elif kind.endswith("tool_result"):
                self.notes["server_tool_results"] += 1
                match = next((w for w in waiting if w[0] == text_of(block, "tool_use_id")), None)
                waiting = [w for w in waiting if w is not match]
                written += [parts[-1].message(status), self._tool(block, match[1] if match else None, node.cleared)]
                parts.append(_TurnParts())
            elif (text := self._block_text(block)) is not None:
                parts[-1].texts.append(text)
        if not written or parts[-1] != _TurnParts():
            written.append(parts[-1].message(status))
        return written + self._results(node, waiting)

    @staticmethod
    def _status(node: Node, context: Context) -> str | None:
        if node.repeats or node not in context.own:
            return "repeated"
        if context.cut:
            return CUT_CONTEXT.key
        if node.lines[0].message.get("model") == "<synthetic>" or _only_a_placeholder(node):
            return SYNTHETIC.key
        return INTERRUPTED.key if node.interrupted else TRUNCATED.key if node.truncated else None

    def _call(self, block: Block, arguments: Any) -> tuple[ToolCall, bool]:
        """Return a call, and whether its arguments are whole: a cut-off answer may leave text instead of an object."""
        call, name = text_of(block, "id"), text_of(block, "name")
        try:
            if isinstance(arguments, dict):
                return ToolCall(call, name, json.dumps(arguments, ensure_ascii=False)), True
        except RecursionError:
            self.notes["too_deep_arguments"] += 1
        else:
            self.notes["non_object_arguments"] += 1
        return ToolCall(call, name, "{}"), False

    def _results(self, node: Node, waiting: list[tuple[str, ToolCall]]) -> list[Message]:
        """The tool messages after an assistant turn, in the order of its calls, then any text that came along."""
        written: list[Message] = []
        calls = Counter(raw for raw, _ in waiting)
        answers = {raw: iter(self._answers(node, raw, count)) for raw, count in calls.items()}
        for raw, call in waiting:
            found = next(answers[raw], [])
            self.notes["unanswered_calls"] += not found
            written.extend(self._tool(block, call, node.cleared) for block in found)
        for line in {line.number: line for lines in node.results.values() for line in lines}.values():
            text = self.flat([b for b in line.blocks if b.get("type") != "tool_result"])
            if text.strip():
                written.append(Message("user", text))
        return written

    def _answers(self, node: Node, raw: str, calls: int) -> list[list[Block]]:
        """Return the results of the calls that share an id, call by call in their order; of a single call the last."""
        lines = [[b for b in x.blocks if text_of(b, "tool_use_id") == raw] for x in node.results.get(raw, [])]
        found = lines[-1:] if calls == 1 else [[block] for blocks in lines for block in blocks]
        self.notes["repeated_tool_results"] += max(0, (len(lines) if calls == 1 else len(found)) - calls)
        return found


@dataclass
class _TurnParts:
    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    seen_tokens: int | None = None

    def message(self, status: str | None) -> Message:
        said = [t for t in self.texts if t.strip()]
        texts = [t for t in said if t.strip() != NO_CONTENT]
        content = "\n".join(texts if texts or self.calls else said)
        reasoning = "\n".join(self.reasoning)
        calls = tuple(self.calls)
        return Message("assistant", content, calls, reasoning=reasoning, status=status, seen_tokens=self.seen_tokens)


def _without_repeats(blocks: Iterable[Block]) -> list[Block]:
    """Return the blocks of a message without calls that are written again: same id, name and arguments."""
    found: list[Block] = []
    calls: dict[str, Block] = {}
    for block in blocks:
        name = text_of(block, "id") if block.get("type") in CALLS else ""
        before = calls.get(name) if name else None
        if before is None or any(before.get(key) != block.get(key) for key in ("type", "name", "input")):
            found.append(block)
            calls[name] = block
    return found


def _only_a_placeholder(node: Node) -> bool:
    """Say whether an answer is nothing but the words that stand for no answer."""
    texts = [b for line in node.lines for b in line.blocks if b.get("type") in ("text", *CALLS)]
    return bool(texts) and all(text_of(b, "text").strip() == NO_CONTENT for b in texts)


def _replaced_results(lines: Sequence[Line]) -> dict[str, str]:
    """Return what Claude Code showed instead of large tool results, by call id."""
    replacements = {}
    for line in lines:
        listed = line.data.get("replacements") if line.kind == "replacement" else None
        for item in listed if isinstance(listed, list) else []:
            if isinstance(item, dict) and text_of(item, "replacement"):
                replacements[text_of(item, "toolUseId")] = text_of(item, "replacement")
    return replacements
