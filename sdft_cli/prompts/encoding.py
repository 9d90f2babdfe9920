"""Exact token ids at the cost of the distinct text.

An added token that is matched before normalisation, and swallows no white space around it, cuts a text: what stands
before and after it is tokenised apart. So the ids of a text are the ids of its pieces, each beginning at such a token,
joined; and a piece (in practice: one message) has to be encoded only once per session.
"""

from __future__ import annotations

import json
import re
from typing import Any


class PieceEncoder:
    """Encode rendered conversations, remembering pieces that were seen before.

    `encode(text)` equals `tokenizer.encode(text, add_special_tokens=False)` for every text. Where the conditions of
    the module docstring do not hold, `exact_pieces` is False and every text is encoded in full.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        boundaries = [
            token.content
            for token in tokenizer.added_tokens_decoder.values()
            if token.special and not (token.normalized or token.lstrip or token.rstrip or token.single_word)
        ]
        self.exact_pieces = bool(boundaries) and _segments_are_independent(tokenizer)
        self._split = re.compile("|".join(f"(?={re.escape(b)})" for b in boundaries)) if self.exact_pieces else None
        self._pieces: dict[str, list[int]] = {}

    def forget(self) -> None:
        """Drop the remembered pieces; call it between sessions to bound memory."""
        self._pieces.clear()

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, without any token that the text does not spell out."""
        if self._split is None:
            return self._full(text)
        ids: list[int] = []
        for piece in self._split.split(text):
            if piece:
                found = self._pieces.get(piece)
                if found is None:
                    found = self._pieces[piece] = self._full(piece)
                ids.extend(found)
        return ids

    def _full(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))


def _segments_are_independent(tokenizer: Any) -> bool:
    """Say whether text between added tokens is tokenised without regard to what stands outside it.

    Metaspace treats the first segment of a text differently (`prepend_scheme: first`), and so do some normalisers
    that prepend; byte-level BPE does not.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return False
    document = json.loads(backend.to_str())
    text = json.dumps([document.get("pre_tokenizer"), document.get("normalizer")])
    return "Metaspace" not in text and "Prepend" not in text
