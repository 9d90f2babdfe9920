"""The token that ends a turn, as the template writes it; `eos_token` of a tokenizer is often another one.

A template that closes an answer closes every one: the last token of a rendered turn is its end (`<|im_end|>`; gpt-oss
closes a text with `<|return|>` and a call with `<|call|>`). Where it closes none, the next role's token ends the turn
(GLM: `<|user|>` behind a text, `<|observation|>` behind a call). Where there is no token either, it is the tokenizer's
`eos_token`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from sdft_cli.prompts.template import TemplateError


class TurnEnds:
    """Find the end of a turn in rendered text, where everything of a session is guarded.

    Args:
        tokens: the special tokens of the tokenizer.
        eos: the token where the template writes none.
    """

    def __init__(self, tokens: Iterable[str], eos: str | None) -> None:
        listed = "|".join(map(re.escape, sorted(set(tokens), key=len, reverse=True))) or "(?!)"
        self._last = re.compile(rf"({listed})\s*\Z")
        self._any = re.compile(listed)
        self._first = re.compile(rf"\s*({listed})")
        self.eos = eos

    def last(self, turn: str) -> str | None:
        """Return the token that closes a rendered turn, or None."""
        match = self._last.search(turn)
        return match[1] if match else None

    def before_token(self, text: str, position: int) -> int:
        """Return the position, or where the token begins that it would cut in two."""
        inside = (match for match in self._any.finditer(text) if match.start() < position < match.end())
        return next((match.start() for match in inside), position)

    def follows(self, text: str) -> str | None:
        """Return the token that the text behind a turn begins with, or None."""
        match = self._first.match(text)
        return match[1] if match else None


def without_end(turn: str, end: str) -> str:
    """Return a rendered turn without white space behind it and without its end.

    Raises:
        TemplateError: the end also stands within the turn, so that a model would stop there.
    """
    text = turn.rstrip().removesuffix(end)
    if end in text:
        raise TemplateError(f"The chat template writes the end of the turn ({end}) in the middle of it.")
    return text
