"""Does an answer copy or leak? Words of a reference it never saw, runs of the expert's words, paths out of nowhere.

All texts that are compared are decoded: a line break in an argument is one, however the model's syntax writes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from sdft_cli.prompts.tool_calls import ParsedTurn
from sdft_cli.records import Message, Record

NGRAM = 6
"""Words of a run that counts as copied: the usual 13 for web text is longer than most tool calls."""

_MENTION = re.compile(
    r"expert_reference"
    r"|\b(?:the|this|that|given|provided) (?:expert|reference|example|demonstration)(?:'s)?"
    r" (?:response|answer|turn|reply|solution|implementation|message|above|shows?|says?|suggests?)\b"
    r"|\b(?:based on|according to|following|as (?:shown|given|stated|described) in) (?:the|this) "
    r"(?:expert|reference|example|demonstration)\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"\w+")
# Two parts at least; a lone file name is as often a word, and `and/or` has no file extension or leading mark.
_PATH = re.compile(r"(?<![\w/.~<-])(?:(?:~|\.{1,2})?/[\w.@+-]+(?:/[\w.@+-]+)*|[\w.@+-]+(?:/[\w.@+-]+)*/[\w@+-]+\.\w+)")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}


def context_text(record: Record) -> str:
    """Return all that the student is shown of a record, as text: messages, calls, tools."""
    tools = (" ".join([t.name, t.description, *_strings(json.loads(t.parameters))]) for t in record.tools)
    return "\n".join([*_texts(record.context), *tools])


def expert_text(record: Record) -> str:
    """Return the expert's turn as text: prose and arguments."""
    return "\n".join(_texts([record.reference]))


def turn_text(turn: ParsedTurn) -> str:
    """Return an answer as text in the form of `expert_text`, its thoughts before it.

    Calls that do not parse come last, as they were written. The escapes of those in JSON are undone one by one, inside
    strings and outside, because a call that was cut off cannot be decoded.
    """
    failed = (raw if raw.lstrip().startswith("<") else _ESCAPE.sub(_unescaped, raw) for raw in turn.failed)
    return "\n".join([turn.thought, turn.content, *(_call_text(c.name, c.arguments) for c in turn.calls), *failed])


def _unescaped(escape: re.Match[str]) -> str:
    return chr(int(escape[1], 16)) if escape[1] else _ESCAPED.get(escape[2], escape[2])


def _call_text(name: str, arguments: dict[str, Any]) -> str:
    return " ".join([name, *_strings(arguments)])


def _texts(messages: tuple[Message, ...] | list[Message]) -> Iterator[str]:
    for message in messages:
        yield message.content
        for call in message.tool_calls:
            yield _call_text(call.name, call.parsed_arguments())


def _strings(value: object) -> Iterator[str]:
    """All keys and values of a JSON value, as texts."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
    else:
        yield str(value)


def mentions_reference(answer: str, context: str) -> bool:
    """Say whether an answer speaks of a reference or example that its prompt did not hold."""
    return any(found[0].lower() not in context.lower() for found in _MENTION.finditer(answer))


def _runs(text: str) -> list[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    return [tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]


def copied_share(answer: str, expert: str, context: str) -> float:
    """Return the share of an answer's runs of `NGRAM` words that the expert's turn has and the context has not.

    0 for an answer that is shorter than a run.
    """
    runs = _runs(answer)
    if not runs:
        return 0.0
    only_there = set(_runs(expert)) - set(_runs(context))
    return sum(run in only_there for run in runs) / len(runs)


def unknown_paths(answer: str, context: str) -> list[str]:
    """Return the file paths of an answer that occur nowhere in its context, each once, in order."""
    paths = (match.rstrip(".") for match in _PATH.findall(answer))
    return [path for path in dict.fromkeys(paths) if path not in context]
