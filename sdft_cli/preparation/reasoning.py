"""Reasoning never enters a context or a reference: neither as a field nor as a think block in the text."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

from sdft_cli.records import Message, Session

_THINK = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)


def strip_message(message: Message) -> Message:
    """Return the message without reasoning. Only an assistant's text is searched for think blocks."""
    content = message.content
    if message.role == "assistant" and "<think>" in content:
        content = _THINK.sub("", content)
    if content == message.content and not message.reasoning:
        return message
    return replace(message, content=content, reasoning="")


def strip_session(session: Session, counts: Counter[str]) -> tuple[Session, set[int]]:
    """Return the session without reasoning, and the turns that consisted of nothing else.

    `counts["messages_with_reasoning"]` grows by the number of messages that changed.
    """
    messages = tuple(strip_message(m) for m in session.messages)
    changed = [i for i, (old, new) in enumerate(zip(session.messages, messages, strict=True)) if old is not new]
    counts["messages_with_reasoning"] += len(changed)
    only = {i for i in changed if not messages[i].content.strip() and not messages[i].tool_calls}
    return replace(session, messages=messages), only
