from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sdft_cli.report.visible import cells_of, cut, escaped, folded, in_short, visible


@given(st.text(st.characters(codec=None)))
def test_nothing_but_printable_characters_is_left(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable()
    assert shown == text or not text.isprintable()
    line = in_short(text, 30)
    assert line.isprintable()
    assert cells_of(line) <= 30


def test_escapes_are_those_of_python() -> None:
    assert visible("\x1b[31m\u202e\ud800 \xe9") == "\\x1b[31m\\u202e\\ud800 \xe9"
    assert visible("a\tb\n", keep="\t", also="b") == "a\t\\x62\\n"
    assert escaped("\U000e0001") == "\\U000e0001"


def test_what_is_cut_is_told() -> None:
    assert in_short("one  two\nthree", 20) == "one two three"
    assert in_short("word " * 100, 20) == "word word\u2026 (500 ch)"
    assert in_short("one two", 20, length=1234) == "one two\u2026 (1,234 ch)"
    assert in_short("word " * 100, 11, told=False) == "word word\u2026"
    assert cut("e" + "\u0301" * 50, 5) == "e" + "\u0301" * 4
    assert cut("\u65e5\u672c\u8a9e", 5) == "\u65e5\u672c"
    assert list(folded("one two three" + "x" * 12, 8)) == ["one two", "threexxx", "xxxxxxxx", "x"]
