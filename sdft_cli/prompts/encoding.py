"""Exact token ids at the cost of the distinct text, and no control token out of guarded text.

An added token that is matched before normalisation, and swallows no white space around it, cuts a text: what stands
before and after it is tokenised apart. So the ids of a text are the ids of its pieces, each beginning at such a token,
joined; and a piece (in practice: one message) has to be encoded only once per session.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from sdft_cli.errors import UsageError
from sdft_cli.prompts.control_tokens import SENTINEL, ControlTokens


class PieceEncoder:
    """Encode rendered conversations, remembering pieces that were seen before.

    `encode(text)` equals `tokenizer.encode(text, add_special_tokens=False)` for every text without guarded parts. Where
    the conditions of the module docstring do not hold, `exact_pieces` is False and every such text is encoded in full.
    Guarded parts (`control_tokens.py`) are encoded as ordinary text. Raises `UsageError` if the tokenizer is not fast.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if self._backend is None:
            raise UsageError("The model has no fast tokenizer (tokenizer.json): convert it with transformers first.")
        added = tokenizer.added_tokens_decoder
        self._added_ids = {token.content: index for index, token in added.items()}
        self._control_ids = frozenset(added)
        document = json.loads(self._backend.to_str())
        self._unknown: int | None = self._added_ids.get(str(document["model"].get("unk_token")))
        self.control = ControlTokens(list(self._added_ids))
        self.boundaries = [
            token.content
            for token in added.values()
            if token.special and not (token.normalized or token.lstrip or token.rstrip or token.single_word)
        ]
        self.exact_pieces = bool(self.boundaries) and _segments_are_independent(document)
        self._starts = re.compile(f"(?={_any_of(self.boundaries)})")
        self._added = re.compile(f"({_any_of(sorted(self._added_ids, key=len, reverse=True))})")
        self._pieces: dict[str, list[int]] = {}
        self._one_of_each: dict[int, int] = {}

    def forget(self) -> None:
        """Drop the remembered pieces; call it between sessions to bound memory."""
        self._pieces.clear()

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, without any token that the text does not spell out."""
        if not self.exact_pieces:
            return self._encode(text)
        ids: list[int] = []
        for piece in self._starts.split(text):
            if piece:
                known = self._pieces.get(piece)
                if known is None:
                    # One object per id: a session of many tokens needs 8 bytes for each of them, not 40.
                    known = self._pieces[piece] = [self._one_of_each.setdefault(i, i) for i in self._encode(piece)]
                ids.extend(known)
        return ids

    def parts(self, text: str) -> list[tuple[str, bool]]:
        """Cut rendered text at its control tokens: what each part spells, guards off, and whether it is one of them."""
        found = [(part, part in self._added_ids) for part in self._added.split(text) if part]
        return [(part if control else self.control.restore(part), control) for part, control in found]

    def is_control(self, token: int) -> bool:
        """Say whether a token is an added one, which no text of a session becomes."""
        return token in self._control_ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, control tokens included."""
        return str(self._backend.decode(list(ids), skip_special_tokens=False))

    def decode_stream(self) -> Callable[[int], str | None]:
        """Return a function that takes one token id after the other and returns the text that it adds.

        None: the token ends within a character, whose text comes with a later one.
        """
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=False)
        return lambda token: stream.step(self._backend, token)

    def _encode(self, text: str) -> list[int]:
        if SENTINEL in text:
            return self._encode_guarded(text)
        ids = list(self._backend.encode(text, add_special_tokens=False).ids)
        return self._encode_guarded(text) if self._unknown in ids else ids

    def _encode_guarded(self, text: str) -> list[int]:
        """Encode text with guarded parts: the template's own tokens by name, all between them as ordinary text."""
        ids: list[int] = []
        for part in self._added.split(text):
            if part in self._added_ids:
                ids.append(self._added_ids[part])
            elif part:
                ids.extend(self._encode_plain(self.control.restore(part)))
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        """Encode text in which nothing is an added token, whatever it spells.

        A vocabulary that lacks bytes writes its unknown token for them, and in some (SmolLM2) that is a control token:
        characters without an encoding become U+FFFD, the replacement character.
        """
        ids = list(self._plain.encode(text, add_special_tokens=False).ids)
        if self._unknown in ids:
            unknown = {x for x in set(text) if self._unknown in self._plain.encode(x, add_special_tokens=False).ids}
            text = text.translate({ord(character): "\ufffd" for character in unknown})
            ids = list(self._plain.encode(text, add_special_tokens=False).ids)
        if self._control_ids.isdisjoint(ids):
            return ids
        # A vocabulary whose merges build an added token out of its characters: keep the characters apart.
        return [i for character in text for i in self._plain.encode(character, add_special_tokens=False).ids]

    @cached_property
    def _plain(self) -> Any:
        """The same tokenizer without its added tokens."""
        from tokenizers import Tokenizer

        return Tokenizer.from_str(json.dumps({**json.loads(self._backend.to_str()), "added_tokens": []}))


def _any_of(texts: Sequence[str]) -> str:
    return "|".join(map(re.escape, texts)) or "(?!)"  # of no texts: matches nowhere


def _segments_are_independent(document: dict[str, Any]) -> bool:
    """Say whether text between added tokens is tokenised without regard to what stands outside it.

    Metaspace treats the first segment of a text differently (`prepend_scheme: first`), and so do some normalisers
    that prepend; byte-level BPE does not.
    """
    text = json.dumps([document.get("pre_tokenizer"), document.get("normalizer")])
    return "Metaspace" not in text and "Prepend" not in text
