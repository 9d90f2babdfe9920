"""Tokens into text while they come, and text that a terminal does not obey."""

from __future__ import annotations

import pytest

from sdft_cli.chat.stream import TextStream
from sdft_cli.notices import visible

torch = pytest.importorskip("torch")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain [bold]text[/bold] <b>", "plain [bold]text[/bold] <b>"),
        ("a\tb\nc", "a\tb\nc"),
        ("\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        ("a\rb\x08\x9b2J", r"a\rb\x08\x9b2J"),
        ("\u202egnp.exe\u2066", r"\u202egnp.exe\u2066"),
        ("\ud800", r"\ud800"),
        ("\U0001f469\u200d\U0001f4bb", "\U0001f469\u200d\U0001f4bb"),
    ],
)
def test_what_a_terminal_would_obey_is_spelled_out(text: str, shown: str) -> None:
    assert visible(text, keep="\t") == shown


def test_a_character_is_written_when_it_is_whole() -> None:
    """Tokens are bytes here; the prompt's are no part of the answer, nor is the one that ends it."""
    written: list[str] = []
    stream = TextStream(lambda ids: bytes(ids).decode("utf-8", "replace"), written.append, [0])
    stream.put(torch.tensor([[7, 7, 7]]))
    for byte in "é\U0001f600!".encode():
        stream.put(torch.tensor([byte]))
    stream.put(torch.tensor([0]))
    stream.end()
    assert written == ["é", "\U0001f600", "!"]


def test_half_a_character_at_the_end_is_written_as_what_it_is() -> None:
    written: list[str] = []
    stream = TextStream(lambda ids: bytes(ids).decode("utf-8", "replace"), written.append, [0])
    stream.put(torch.tensor([[7]]))
    stream.put(torch.tensor([ord("a")]))
    stream.put(torch.tensor(["é".encode()[0]]))
    stream.end()
    assert written == ["a", "\ufffd"]
