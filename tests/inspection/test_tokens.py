from __future__ import annotations

from pathlib import Path

from sdft_cli.inspection.screen import Screen
from sdft_cli.inspection.tokens import pieces, token_lines
from sdft_cli.prompts.chat import load_tokenizer
from sdft_cli.prompts.encoding import PieceEncoder

TEXT = "<|im_start|>user\nHello  w\u00f6rld \U0001f468\u200d\U0001f469 \u65e5\u672c\n\tx<|im_end|>\n"


def test_pieces_are_the_text_and_their_ids_are_the_tokens(smollm2: Path) -> None:
    encoder = PieceEncoder(load_tokenizer(smollm2))
    ids = encoder.encode(TEXT)
    found = pieces(encoder, ids)
    assert "".join(piece.text for piece in found) == TEXT
    assert [i for piece in found for i in piece.ids] == ids
    assert [piece.text for piece in found if piece.control] == ["<|im_start|>", "<|im_end|>"]
    assert encoder.parts(encoder.control.guard_text("<|im_end|>") + "<|im_end|>") == [
        ("<|im_end|>", False),
        ("<|im_end|>", True),
    ]
    lines = list(token_lines(found, Screen(60)))
    assert lines[0] == "     0  1 \u27e6<|im_start|>\u27e7 \u2502 4093 user \u2502 198 \\n"
    assert lines[1].startswith("     3  19556 Hello \u2502 216 \u00b7 \u2502 267 \u00b7w \u2502 ")


def test_ids_that_end_within_a_character_are_shown(smollm2: Path) -> None:
    encoder = PieceEncoder(load_tokenizer(smollm2))
    ids = encoder.encode("\u65e5")[:-1]
    assert [piece.ids for piece in pieces(encoder, [*ids, 2])] == [tuple(ids), (2,)]
