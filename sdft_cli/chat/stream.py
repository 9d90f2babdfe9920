"""Text on its way to a terminal: tokens into text while they come, and nothing that a terminal would obey."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any


class TextStream:
    """A streamer of transformers' `generate`: writes text as soon as its tokens say which characters they are.

    Args:
        decode: token ids -> text.
        write: gets each new piece of text.
        stop_ids: tokens that end the answer; they are not written.
    """

    def __init__(self, decode: Callable[[list[int]], str], write: Callable[[str], None], stop_ids: Collection[int]):
        self._decode, self._write, self._stop = decode, write, stop_ids
        self._ids: list[int] = []
        self._written = 0
        self._prompt = True

    def put(self, value: Any) -> None:
        """Take the prompt's ids first, then those of each step: a tensor."""
        if self._prompt:
            self._prompt = False
            return
        self._ids += [i for i in value.flatten().tolist() if i not in self._stop]
        self._flush(whole=False)

    def end(self) -> None:
        """Write what was held back."""
        self._flush(whole=True)

    def _flush(self, whole: bool) -> None:
        text = self._decode(self._ids)
        if not whole:
            text = text.rstrip("\ufffd")  # the first bytes of a character whose other bytes have not come yet
        if len(text) > self._written:
            self._write(text[self._written :])
            self._written = len(text)
