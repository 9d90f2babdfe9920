from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sdft_cli.errors import UsageError
from sdft_cli.records.folders import write_text
from sdft_cli.report.page import HEIGHT, WIDTH, plot_of, render_page
from sdft_cli.report.statistics import Histogram, Length
from tests.report.hostile import NAMES, SOURCE, hostile_dataset

ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "div", "span", "table", "tr", "th", "td"),
    *("figure", "figcaption", "svg", "g", "line", "rect", "text"),
}


class Page(HTMLParser):
    """Collects elements, attributes and text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_is_well_formed_static_and_escapes_every_name(tmp_path: Path) -> None:
    source = render_page(hostile_dataset(tmp_path / "d"))
    page = Page(source)
    assert not page.open
    assert page.tags <= ALLOWED
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href", "srcset")]
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in [value for _, value in page.attributes]
    assert not re.search(r"https?:|url\(|@import", source)
    assert set(NAMES) <= set(page.texts)
    assert SOURCE in page.texts
    assert "teacher prompt over --max-prompt-tokens" in page.texts


def test_bars_of_a_plot() -> None:
    length = Length("x", "x", "cap", 32, None, Histogram((16, 32, 64), (3, 0), (1, 2)))
    plot = plot_of(length)
    assert plot.largest == 4
    assert plot.cap_x == WIDTH / 2  # on a border
    first, second = plot.bars
    assert (first.kept_height, first.over_cap_height) == (HEIGHT * 3 / 4, HEIGHT / 4)
    assert first.over_cap_y == 0
    assert first.kept_y == first.over_cap_y + first.over_cap_height
    assert (second.kept_height, second.over_cap_height) == (0, HEIGHT / 2)
    assert second.x == first.x + WIDTH / 2
    inside = plot_of(Length("x", "x", "cap", 8, None, Histogram((4, 16), (1,), (0,))))
    assert inside.cap_x == WIDTH / 2  # 8 is half-way from 4 to 16 on a log scale
    assert plot_of(Length("x", "x", None, None, None, Histogram((), (), ()))).bars == ()


def test_a_page_is_not_overwritten_unasked(tmp_path: Path) -> None:
    text, path = render_page(hostile_dataset(tmp_path / "d")), tmp_path / "r.html"
    write_text(path, text)
    with pytest.raises(UsageError, match="--overwrite"):
        write_text(path, text)
    write_text(path, text, overwrite=True)
    assert path.read_text(encoding="utf-8") == text
