"""Parallel calls as consecutive ones, for chat templates that write one call a turn.

A turn with two calls and their results becomes a turn with the first call and its result, and a turn with the second.
Each is a turn of its own, and so a record of its own. The text beside the calls stays with the first one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from sdft_cli.records import Message, Session


def split_parallel(session: Session, counts: Counter[str]) -> Session:
    """Return the session with each turn of several calls split; `parallel_calls_split` counts such turns.

    A turn stays as it is if one of its calls has no result, or if two have the same id: nobody could say what the model
    saw between them.
    """
    messages: list[Message] = []
    position = 0
    while position < len(session.messages):
        message = session.messages[position]
        results = _results(session.messages, position + 1)
        by_call = {result.tool_call_id: result for result in results}
        position += 1 + len(results)
        wanted = [call.id for call in message.tool_calls]
        if len(wanted) > 1 and len(wanted) == len(results) == len(by_call) and by_call.keys() == set(wanted):
            counts["parallel_calls_split"] += 1
            messages += _one_by_one(message, by_call)
        else:
            messages += [message, *results]
    return replace(session, messages=tuple(messages))


def _results(messages: Sequence[Message], start: int) -> list[Message]:
    """Return the results that stand from `start` on, up to any other message."""
    stop = next((i for i in range(start, len(messages)) if messages[i].role != "tool"), len(messages))
    return list(messages[start:stop])


def _one_by_one(message: Message, by_call: dict[str | None, Message]) -> list[Message]:
    found: list[Message] = []
    for number, call in enumerate(message.tool_calls):
        turn = replace(message, tool_calls=(call,))
        if number:
            turn = replace(turn, content="", reasoning="", seen_tokens=None)
        found += [turn, by_call[call.id]]
    return found
