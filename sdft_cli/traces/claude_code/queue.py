"""Prompts that were typed while a turn was running, and which of them the running turn absorbed."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

from sdft_cli.traces.claude_code.attachments import blocks_of
from sdft_cli.traces.claude_code.lines import Line
from sdft_cli.traces.fields import object_of, text_of


def queued_prompts(lines: Sequence[Line]) -> list[tuple[int, Line]]:
    """Return `(number of the line that took it from the queue, the line that queued it)` for prompts shown mid-turn.

    `remove` takes a prompt out because the running turn absorbs it; `dequeue` starts a turn of its own with it, whose
    user line follows; `popAll` gives the prompts back to the user. Newer versions also write what was absorbed as an
    attachment: that line then shows it. A notice of a background task may be delivered without any of these: the user
    line that has its words takes it from the queue.
    """
    attached = Counter(
        _words(line) for line in lines if object_of(line.data, "attachment").get("type") == "queued_command"
    )
    waiting = _Waiting()
    delivered = 0
    """Prompts whose user line came first: a `dequeue` of theirs may follow, or none."""
    shown: list[tuple[int, Line]] = []
    for line in lines:
        if line.kind == "user" and line.data.get("type") == "user":
            texts = [_words(line), *(text_of(b, "text").strip() for b in line.blocks if b.get("type") == "text")]
            text = next((text for text in texts if text and waiting.has(text)), "")
            if text:
                waiting.take(text)
                delivered += 1
            continue
        operation = line.data.get("operation") if line.kind == "queue" else None
        content = text_of(line.data, "content").strip()
        if operation == "enqueue":
            waiting.add(line, content)
        elif operation == "popAll":
            waiting = _Waiting()
        elif operation == "dequeue" and delivered and not content:
            delivered -= 1  # if it was for another prompt, the user line of that one takes it out
        elif operation in ("remove", "dequeue") and waiting.prompts:
            prompt, text = waiting.take(content)
            if operation == "remove" and attached[text] > 0:
                attached[text] -= 1
            elif operation == "remove" and text:
                shown.append((line.number, prompt))
    return shown


class _Waiting:
    """Prompts in the order in which they came, found by their words too."""

    def __init__(self) -> None:
        self.prompts: dict[int, tuple[Line, str]] = {}
        self._places: dict[str, deque[int]] = {}
        self._next = 0

    def add(self, line: Line, words: str) -> None:
        self.prompts[self._next] = line, words
        self._places.setdefault(words, deque()).append(self._next)
        self._next += 1

    def has(self, words: str) -> bool:
        return bool(self._places.get(words))

    def take(self, words: str) -> tuple[Line, str]:
        """Take out the first prompt with these words; the first of all, if none has them."""
        place = self._places[words][0] if words and self.has(words) else next(iter(self.prompts))
        line, own = self.prompts.pop(place)
        self._places[own].popleft()
        return line, own


def _words(line: Line) -> str:
    """Return the words of a prompt: of a user line, or of what an attachment says was queued."""
    prompt = object_of(line.data, "attachment").get("prompt", line.message.get("content"))
    return "\n".join(text_of(b, "text") for b in blocks_of(prompt) if b.get("type") == "text").strip()
