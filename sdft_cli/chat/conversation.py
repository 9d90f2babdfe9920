"""A conversation as a session: what was said so far is the context of a record whose turn the model writes next."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from sdft_cli.prompts.syntaxes.turns import ParsedTurn
from sdft_cli.records import Message, Record, RecordRow, Session, ToolCall, ToolSchema


@dataclass
class Conversation:
    """What the model is shown.

    Attributes:
        front: what stands before all that is said: system messages.
        tools: the tools that the model may call; nothing here runs them.
        messages: what was said.
        waiting: calls of the last turn that have no result yet, the first one first.
    """

    front: tuple[Message, ...] = ()
    tools: tuple[ToolSchema, ...] = ()
    messages: list[Message] = field(default_factory=list)
    waiting: list[ToolCall] = field(default_factory=list)
    _calls: int = 0

    def take(self, text: str) -> None:
        """Add the result of the first call that waits, or where none does a message of the user."""
        if not self.waiting:
            self.messages.append(Message("user", text))
            return
        call = self.waiting.pop(0)
        self.messages.append(Message("tool", text, tool_call_id=call.id, name=call.name))

    def add_turn(self, text: str, turn: ParsedTurn) -> None:
        """Add the model's turn: its prose and its calls, or all of its text where a call cannot be read."""
        calls = []
        for call in () if turn.errors else turn.calls:
            self._calls += 1
            # Nine letters or digits: Mistral's templates take no other names.
            calls.append(ToolCall(f"call{self._calls:05}", call.name, json.dumps(call.arguments, ensure_ascii=False)))
        self.messages.append(Message("assistant", text if turn.errors else turn.content, tuple(calls)))
        self.waiting = list(calls)

    def take_back(self, length: int, waiting: list[ToolCall]) -> None:
        """Be what it was with so many messages and these waiting calls, after a turn that failed or was stopped."""
        del self.messages[length:]
        self.waiting = waiting

    def reset(self) -> None:
        """Forget all that was said; `front` and tools stay."""
        self.messages, self.waiting = [], []

    def record(self) -> Record:
        """Return the record whose student's prompt is this conversation; its own turn is a full stop."""
        messages = (*self.front, *self.messages, Message("assistant", "."))
        place = len(messages) - 1
        row = RecordRow(f"chat/{place}", "chat", place, 0, 0, 0, False)
        return Record(row, Session("chat", messages, self.tools, "chat"))
