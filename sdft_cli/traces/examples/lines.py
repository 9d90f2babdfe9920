"""Writes the lines of one session as Claude Code does."""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass, field
from typing import Any


@dataclass
class LineWriter:
    """Writes the lines of one session; each line's parent is the line before, unless one is given."""

    rng: random.Random
    session: str
    lines: list[dict[str, Any]] = field(default_factory=list)
    last: str | None = None
    seconds: int = 0

    def _uuid(self) -> str:
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))

    def _line(self, kind: str, body: dict[str, Any], parent: str | None = None) -> str:
        self.seconds += self.rng.randrange(1, 9)
        name = self._uuid()
        self.lines.append(
            {
                "parentUuid": parent or self.last,
                "isSidechain": False,
                "userType": "external",
                "cwd": "/app",
                "sessionId": self.session,
                "version": "2.1.37",
                "gitBranch": "main",
                "type": kind,
                **body,
                "uuid": name,
                "timestamp": f"2026-03-02T09:{self.seconds // 60 % 60:02d}:{self.seconds % 60:02d}.000Z",
            }
        )
        self.last = name
        return name

    def user(self, text: str, **extra: Any) -> str:
        """Write what the user typed."""
        return self._line("user", {"message": {"role": "user", "content": text}, **extra})

    def assistant(self, *blocks: dict[str, Any]) -> list[str]:
        """Write one API message: each block on a line of its own, all with the same `message.id`."""
        message_id = f"msg_{self.rng.getrandbits(96):024x}"
        base = {"model": "claude-example-1", "id": message_id, "type": "message", "role": "assistant"}
        return [
            self._line("assistant", {"message": {**base, "content": [block], "stop_reason": None}}) for block in blocks
        ]

    def think(self, text: str) -> dict[str, Any]:
        """Return a block of reasoning."""
        return {"type": "thinking", "thinking": text, "signature": f"{self.rng.getrandbits(64):016x}"}

    def call(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Return a block that calls a tool."""
        return {"type": "tool_use", "id": f"toolu_{self.rng.getrandbits(96):024x}", "name": name, "input": arguments}

    def result(self, call: dict[str, Any], text: str, parent: str | None = None) -> str:
        """Write the result of a call."""
        block = {"tool_use_id": call["id"], "type": "tool_result", "content": text}
        return self._line("user", {"message": {"role": "user", "content": [block]}}, parent)

    def use(self, thought: str, call: dict[str, Any], output: str) -> None:
        """Think, call a tool, get its result."""
        self.assistant(self.think(thought), call)
        self.result(call, output)

    def say(self, text: str) -> None:
        """Write a turn of text."""
        self.assistant({"type": "text", "text": text})
