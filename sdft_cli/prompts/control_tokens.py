"""No text of a session becomes a control token.

A tokenizer turns the text `<|im_end|>` into the token that ends a turn, wherever it stands. In a chat template's own
text that is right; in a user's message, a tool's output or a file that an agent read, it would let the text speak as
the system. So text of a session is guarded before it is rendered: each added token that it spells is replaced by a
marker that no tokenizer knows, and `PieceEncoder` encodes what the marker stands for as ordinary text. A conversation
that spells none is rendered and encoded as if nothing had happened.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sdft_cli.errors import DataError

SENTINEL = "\U0010fffd"
"""The last private-use character of Unicode; where a session uses it, it is guarded too."""
_LITERAL, _BREAK = "s", "b"
_MARKER = re.compile(f"{SENTINEL}([0-9]+|{_LITERAL}|{_BREAK}){SENTINEL}")


class ControlTokens:
    """Guard text of a session against the added tokens of one tokenizer, and take the guard off again."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = sorted(tokens)
        by_length = sorted(self.tokens, key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, [*by_length, SENTINEL])))
        self._index = {token: f"{SENTINEL}{i}{SENTINEL}" for i, token in enumerate(self.tokens)}
        self._index[SENTINEL] = f"{SENTINEL}{_LITERAL}{SENTINEL}"
        self._open = {token[:n] for token in self.tokens for n in range(1, len(token))}
        self._close = {token[n:] for token in self.tokens for n in range(1, len(token))}
        self._longest = max(map(len, self.tokens), default=0)

    def guard(self, value: Any) -> Any:
        """Return `value` with every string in it guarded: lists, dictionaries and their keys too."""
        if isinstance(value, str):
            return self.guard_text(value)
        if isinstance(value, dict):
            return {self.guard(key): self.guard(item) for key, item in value.items()}
        return [self.guard(item) for item in value] if isinstance(value, list) else value

    def guard_text(self, text: str) -> str:
        """Replace each added token by its marker, and put a break where an end could complete one with its neighbour.

        Ends are looked at inside their white space, which templates may trim.
        """
        guarded = self._spelled.sub(lambda match: self._index[match[0]], text)
        stop = len(guarded.rstrip())
        tail = guarded[max(0, stop - self._longest) : stop]
        if any(tail[n:] in self._open for n in range(len(tail))):
            guarded = f"{guarded[:stop]}{SENTINEL}{_BREAK}{SENTINEL}{guarded[stop:]}"
        start = len(guarded) - len(guarded.lstrip())
        front = guarded[start : start + self._longest]
        if any(front[:n] in self._close for n in range(1, len(front) + 1)):
            guarded = f"{guarded[:start]}{SENTINEL}{_BREAK}{SENTINEL}{guarded[start:]}"
        return guarded

    def restore(self, text: str) -> str:
        """Return the text its markers stand for; raises `DataError` where a chat template cut a marker apart."""
        if SENTINEL not in text:
            return text
        restored = _MARKER.sub(self._meaning, text)
        if restored.count(SENTINEL) != sum(m[1] == _LITERAL for m in _MARKER.finditer(text)):
            raise DataError("The chat template cuts guarded text apart, so control tokens cannot be kept out of it.")
        return restored

    def _meaning(self, match: re.Match[str]) -> str:
        if match[1] == _BREAK:
            return ""
        return SENTINEL if match[1] == _LITERAL else self.tokens[int(match[1])]
