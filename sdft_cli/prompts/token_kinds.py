"""What each token of an answer is: prose, a tool's name, an argument, control, or part of a call that is none.

A parsed turn says where its prose stands. Names, keys and values of calls are looked up in the rest of the text, in
their order, as the syntaxes may have written them: as they are, or escaped. What is left over is control: tags, quotes,
brackets, the token that ends the turn.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from sdft_cli.prompts.syntaxes.turns import ParsedTurn

Kind = Literal["prose", "tool", "argument", "control", "broken"]
KINDS: tuple[Kind, ...] = ("tool", "argument", "broken", "prose", "control")
"""`broken`: of a call that was begun and cannot be read. In this order they win where a token holds as many characters
of one as of another."""


class _Places:
    """The kinds of a text's characters, while parts of its calls are found; all that was not found yet is control."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.kinds: list[Kind] = ["control"] * len(text)
        self.cursor = 0

    def mark(self, start: int, end: int, kind: Kind) -> None:
        self.kinds[start:end] = [kind] * (end - start)

    def find(self, pattern: str, kind: Kind, within: Kind = "control") -> bool:
        """Mark the first match behind the last one that lies in characters of kind `within`; say whether there is one.

        A match does not begin or end within a word.
        """
        whole = re.compile(rf"(?<!\w)(?:{pattern})(?!\w)")
        for match in whole.finditer(self.text, self.cursor):
            start, end = match.span()
            if start < end and self.kinds[start:end].count(within) == end - start:
                self.mark(start, end, kind)
                self.cursor = end
                return True
        return False


def _escaped(text: str) -> str:
    """Return a pattern of a text whose characters may each be escaped as in JSON or Python."""
    return "".join(rf"(?:{re.escape(c)}|\\u{ord(c):04x}|\\u{ord(c):04X}|\\[^u])" for c in text)


def _patterns(value: Any) -> Iterator[str]:
    """Yield how a name, a key or a value without parts may be written, as patterns."""
    if isinstance(value, str):
        forms = (value, value.strip(), *(json.dumps(value, ensure_ascii=ascii)[1:-1] for ascii in (False, True)))
        yield from (re.escape(form) for form in dict.fromkeys(forms) if form)
        if value and len(value) < 10_000:
            yield _escaped(value)
    else:
        yield from (re.escape(form) for form in dict.fromkeys((json.dumps(value), repr(value))))
        if isinstance(value, int | float):
            yield r"[-+]?[\d.]+(?:[eE][-+]?\d+)?"


def _parts(value: Any) -> Iterator[Any]:
    """Yield the keys and the values without parts of an argument, in their order."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _parts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _parts(inner)
    else:
        yield value


def character_kinds(text: str, turn: ParsedTurn) -> list[Kind]:
    """Return the kind of each character of a text that was parsed as `turn`."""
    found = _Places(text)
    for start, end in turn.prose:
        found.mark(start, end, "prose")
    for raw in turn.failed:
        found.cursor = 0
        at = text.find(raw)
        while at >= 0 and set(found.kinds[at : at + len(raw)]) - {"control"}:
            at = text.find(raw, at + 1)
        if raw and at >= 0:
            found.mark(at, at + len(raw), "broken")
            found.cursor = at
            if turn.begun and raw == turn.failed[-1]:
                found.find(re.escape(turn.begun), "tool", "broken")
    found.cursor = 0
    for call in turn.calls:
        before = found.cursor
        if found.find(re.escape(call.name), "tool"):
            behind = found.cursor
            for part in _parts(call.arguments):
                if not any(found.find(pattern, "argument") for pattern in _patterns(part)):
                    found.cursor = max(found.cursor, behind)
        else:
            found.cursor = before
    return found.kinds


def token_kinds(pieces: Sequence[str], turn: ParsedTurn, control: Sequence[bool]) -> list[Kind]:
    """Return the kind of each token: that of most of its characters.

    Args:
        pieces: the text of each token; together they are the text that was parsed as `turn`.
        turn: what the text says.
        control: whether a token is control whatever it spells, as the one that ends the turn.
    """
    kinds, at, found = character_kinds("".join(pieces), turn), 0, list[Kind]()
    for piece, is_control in zip(pieces, control, strict=True):
        inside = Counter(kinds[at : at + len(piece)])
        at += len(piece)
        best: Kind = max(KINDS, key=lambda kind: (inside[kind], -KINDS.index(kind)))
        # A token that ends within a character shows nothing: it belongs to what follows.
        following: Kind = kinds[at] if at < len(kinds) else "control"
        found.append("control" if is_control else best if piece else following)
    return found


def token_pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return the text that each token adds; of the tokens of one character, the last one has it.

    What ends within a character stands with the last token, as the decoder writes it.
    """
    from tokenizers.decoders import DecodeStream

    stream, pieces = DecodeStream(skip_special_tokens=False), list[str]()
    for token in ids:
        pieces.append(stream.step(tokenizer.backend_tokenizer, token) or "")
    rest = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    shown = sum(map(len, pieces))
    if pieces and len(rest) > shown and rest.startswith("".join(pieces)):
        pieces[-1] += rest[shown:]
    return pieces
