"""Reasoning never enters a context or a reference: neither as a field nor as the beginning of a text.

A model thinks before it speaks, so only the beginning of an assistant's text is searched:

- Blocks (`<think>...</think>`) at the beginning go, with blocks in them. One without an end is reasoning to the last
  word.
- Where a chat template wrote the opening tag, a closing tag stands alone. What is before it goes, if no opening tag is,
  and if nothing else can be meant: the text begins with it, or it is alone on its line, or a blank line or the end of
  the text follows.
- A tag beside a backtick is code. In front of a lone closing tag, so is one between code fences.

Everything else is prose about tags, and stays.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

from sdft_cli.records import Message, Session

_TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)
_OPENING, _CLOSING = ("|".join(map(re.escape, tags)) for tags in zip(*_TAGS, strict=True))
_TAG = re.compile(rf"(?<!`)(?:(?P<opening>{_OPENING})|(?P<closing>{_CLOSING}))(?!`)")
_MARK = re.compile(rf"(?P<fence>^ {{0,3}}(?:```|~~~))|{_TAG.pattern}", re.MULTILINE)
_LINE_ENDS = re.compile(r"[^\S\n]*\n")
_PARAGRAPH_ENDS = re.compile(r"[^\S\n]*\n[^\S\n]*\n|\s*\Z")
_SPACE = re.compile(r"\s*")


def _behind_block(text: str, start: int) -> int:
    """Return where the block ends that opens at `start`: if its tags do not pair up, at the last closing one."""
    depth, end = 0, len(text)
    for tag in _TAG.finditer(text, start):
        depth += 1 if tag["opening"] else -1
        end = tag.end() if tag["closing"] else end
        if not depth:
            break
    return end


def _behind_thought(text: str, start: int) -> int | None:
    """Return where a thought ends that begins at `start` without a tag; None if there is none."""
    fenced = False
    for mark in _MARK.finditer(text, start):
        if mark["fence"]:
            fenced = not fenced
        elif fenced:
            continue
        elif mark["opening"]:
            return None
        elif _closes(text, start, mark):
            return mark.end()
    return None


def _closes(text: str, start: int, tag: re.Match[str]) -> bool:
    """Say whether a lone closing tag can mean nothing but the end of a thought."""
    alone = text[tag.start() - 1 : tag.start()] == "\n" and _LINE_ENDS.match(text, tag.end())
    return bool(tag.start() == start or alone or _PARAGRAPH_ENDS.match(text, tag.end()))


def _without_thoughts(text: str) -> str:
    start = found = 0
    while True:
        at = _SPACE.match(text, start).end()  # type: ignore[union-attr]  # it always matches
        tag = _TAG.match(text, at)
        end = _behind_block(text, at) if tag and tag["opening"] else _behind_thought(text, at)
        if end is None:
            return text[at:] if found else text
        start = found = end


def strip_message(message: Message) -> Message:
    """Return the message without reasoning. Only an assistant's text is searched for it."""
    content = _without_thoughts(message.content) if message.role == "assistant" else message.content
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
