"""The parts of OpenCode's messages: what makes a prompt, and which of them are one call of the model.

A message of the assistant holds one or more steps (calls of the model), between `step-start` parts; each step is a
turn. Where a message marks no steps, a text after a result begins a new turn, because the model had read the result.
What stands for results that never came, and for a compaction, is what OpenCode sends to the model in their place.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sdft_cli.records import Message, ToolCall
from sdft_cli.records.reasons import TRUNCATED
from sdft_cli.traces.agents.calls import json_text, tool_call
from sdft_cli.traces.fields import FILE, IMAGE, object_of, objects_of, text_of
from sdft_cli.traces.types import ReadReport

INTERRUPTED_RESULT = "[Tool execution was interrupted]"
COMPACTION_PROMPT = "What did we do so far?"
SUBTASK_PROMPT = "The following tool was executed by the user"
_SHOWN_AS_TEXT = ("text/plain", "application/x-directory")
_SILENT = ("step-start", "step-finish", "snapshot", "patch", "agent", "retry")


def _media(part: dict[str, Any], report: ReadReport) -> str:
    image = text_of(part, "mime").startswith("image/")
    report.notes["images" if image else "documents"] += 1
    return IMAGE if image else FILE


def prompt_of(parts: list[dict[str, Any]], report: ReadReport) -> Message:
    """Return the prompt that these parts make; files whose text stands in a part of its own are left out."""
    texts = []
    for part in parts:
        kind = text_of(part, "type")
        if kind == "text" and part.get("ignored") is not True:
            texts.append(text_of(part, "text"))
        elif kind == "file" and part.get("mime") not in _SHOWN_AS_TEXT:
            texts.append(_media(part, report))
        elif kind in ("compaction", "subtask"):
            texts.append(COMPACTION_PROMPT if kind == "compaction" else SUBTASK_PROMPT)
        elif kind not in ("text", "file", *_SILENT):
            report.notes["unknown_blocks"] += 1
    return Message("user", "\n".join(texts))


@dataclass
class _Step:
    """One call of the model: what it wrote, and the results of its calls."""

    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    results: list[Message] = field(default_factory=list)
    cut: bool = False

    def turn(self, status: str | None) -> list[Message]:
        """Return the turn and the results of its calls."""
        text = "\n".join(t for t in self.texts if t.strip())
        status = status or (TRUNCATED.key if self.cut else None)
        reasoning = "\n".join(self.reasoning)
        return [Message("assistant", text, tuple(self.calls), reasoning=reasoning, status=status), *self.results]


def _result(part: dict[str, Any], report: ReadReport) -> str:
    state = object_of(part, "state")
    status, metadata = state.get("status"), object_of(state, "metadata")
    if status == "completed":
        report.notes["cleared_results"] += object_of(state, "time").get("compacted") is not None
        files = [_media(file, report) for file in objects_of(state, "attachments")]
        return "\n".join([json_text(state.get("output"), report.notes), *files])
    if status == "error":
        kept = metadata.get("output") if metadata.get("interrupted") is True else None
        return json_text(state.get("error") if kept is None else kept, report.notes)
    return INTERRUPTED_RESULT


def _steps(parts: list[dict[str, Any]], report: ReadReport) -> list[_Step]:
    steps = [_Step()]
    marked = any(part.get("type") == "step-start" for part in parts)
    for part in parts:
        kind = text_of(part, "type")
        if (kind == "step-start" and steps[-1] != _Step()) or (
            not marked and kind in ("text", "reasoning") and steps[-1].results
        ):
            steps.append(_Step())
        if kind == "text":
            steps[-1].texts.append(text_of(part, "text"))
        elif kind == "reasoning":
            steps[-1].reasoning.append(text_of(part, "text"))
        elif kind == "step-finish":
            steps[-1].cut = part.get("reason") == "length"
        elif kind == "tool":
            call = tool_call(part.get("callID"), part.get("tool"), object_of(part, "state").get("input"), report.notes)
            steps[-1].calls.append(call)
            steps[-1].results.append(Message("tool", _result(part, report), tool_call_id=call.id, name=call.name))
        elif kind not in _SILENT:
            report.notes["unknown_blocks"] += 1
    return [step for step in steps if step.texts or step.reasoning or step.calls]


def turns_of(parts: list[dict[str, Any]], report: ReadReport, status: str | None) -> list[Message]:
    """Return the turns of a message of the assistant; what ended the message is about its last step."""
    steps = _steps(parts, report)
    report.notes["empty_messages"] += not steps
    before = "repeated" if status == "repeated" else None
    return [m for i, step in enumerate(steps, 1) for m in step.turn(status if i == len(steps) else before)]
