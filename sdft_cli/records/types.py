"""Typed records. Everything is immutable, so a record can be a view into its session and never a copy of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
Origin = Literal["declared", "inferred", "given"]
"""Where a tool schema comes from: our data file, observed calls, or the source itself."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool. `arguments` is the JSON text of an object: struct inference would null-pad its keys."""

    id: str
    name: str
    arguments: str

    def parsed_arguments(self) -> dict[str, Any]:
        """Return the arguments as a dictionary; key order is the order in which the model wrote them."""
        value = json.loads(self.arguments)
        if not isinstance(value, dict):
            raise ValueError(f"arguments of {self.name} are not a JSON object")
        return value


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    `reasoning` and `seen_tokens` exist only between reader and `prepare`; they are never written to disk and never
    rendered. `seen_tokens`: of an assistant message, the tokens of the prompt that the model saw, by its provider's
    tokenizer; None where the source does not say.
    `status` names why an assistant message must not become a reference (`synthetic`, `interrupted`, ...), else None.
    """

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    reasoning: str = ""
    status: str | None = None
    seen_tokens: int | None = None

    def as_openai(self, arguments: Callable[[ToolCall], Any] = ToolCall.parsed_arguments) -> dict[str, Any]:
        """Return the message in OpenAI's form; `arguments` writes those of a call: an object, or its JSON text."""
        written: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            written["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments(call)}}
                for call in self.tool_calls
            ]
        if self.role == "tool":
            written["tool_call_id"] = self.tool_call_id
        return written


@dataclass(frozen=True, slots=True)
class ToolSchema:
    """A function that the model may call. `parameters` is JSON text of a JSON Schema object."""

    name: str
    description: str
    parameters: str
    origin: Origin = "given"

    def as_openai(self) -> dict[str, Any]:
        """Return the tool in OpenAI's form, with the schema as an object."""
        function = {"name": self.name, "description": self.description, "parameters": json.loads(self.parameters)}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Session:
    """One context window of one agent, in the order in which the model saw it.

    `group` joins sessions that share text (a session, its subagents, its compacted continuation); groups never
    straddle a split. `metadata` is small and JSON-able.
    """

    session_id: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSchema, ...] = ()
    group: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def assistant_turns(self) -> list[int]:
        """Return the indices of the assistant messages: each is one candidate record.

        Those whose `status` is "repeated" are left out: they are turns of another session (the one that was resumed or
        compacted) and stand here as context only.
        """
        return [i for i, m in enumerate(self.messages) if m.role == "assistant" and m.status != "repeated"]


@dataclass(frozen=True, slots=True)
class RecordRow:
    """A row of `train.parquet` or `validation.parquet`: a pointer into a session, with its lengths in tokens."""

    record_id: str
    session_id: str
    turn_index: int
    prompt_tokens: int
    teacher_prompt_tokens: int
    reference_tokens: int
    has_tool_call: bool

    @property
    def sequence_tokens(self) -> int:
        """Tokens of the longest sequence that training makes of the record: teacher's prompt and expert's turn."""
        return self.teacher_prompt_tokens + self.reference_tokens


@dataclass(frozen=True, slots=True)
class Rejection:
    """A row of `rejected.parquet`: an assistant turn that did not become a record, and why.

    `turn_index` is None for a turn that is in no kept conversation (an abandoned branch); token counts are None
    where the turn was rejected before its tokens were counted.
    """

    record_id: str
    session_id: str
    turn_index: int | None
    reason: str
    detail: str = ""
    prompt_tokens: int | None = None
    teacher_prompt_tokens: int | None = None
    reference_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One training example: a view `(context, reference, tools)` of a session at an assistant turn."""

    row: RecordRow
    session: Session

    @property
    def record_id(self) -> str:
        return self.row.record_id

    @property
    def context(self) -> tuple[Message, ...]:
        """The conversation before the turn: `messages[:turn_index]`."""
        return self.session.messages[: self.row.turn_index]

    @property
    def reference(self) -> Message:
        """The expert's turn: `messages[turn_index]`."""
        return self.session.messages[self.row.turn_index]

    @property
    def tools(self) -> tuple[ToolSchema, ...]:
        return self.session.tools


def record_id_of(session_id: str, turn_index: int) -> str:
    """The stable name of a record: session and position."""
    return f"{session_id}/{turn_index}"
