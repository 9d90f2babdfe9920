"""The pages in a real browser: nothing runs, nothing is asked for, parts unfold, a phone need not scroll sideways."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sdft_cli.report.page import render_page
from sdft_cli.report.run.page import render_evaluation, render_run
from sdft_cli.stages.report import read_evaluation_of, run_parts
from tests.report.browser import Browser, program
from tests.report.hostile import hostile_dataset
from tests.report.run.made import hostile_run, made_run, write_evaluation

pytest.importorskip("websockets")
OUTSIDE = """
[...document.querySelectorAll('body *')].filter(e => {
  const box = e.getBoundingClientRect();
  return box.right > innerWidth + 1 && !e.closest('.wide, svg, style');
}).map(e => e.tagName + '.' + e.className)
"""
"""Elements that reach over the right edge and stand in no box that scrolls."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = program()
    if found is None:
        pytest.skip("no Chromium here: the page is parsed in other tests only")
    running = Browser(found)
    yield running
    running.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    texts = {
        "run": render_run(run_parts(made_run(folder / "r"))),
        "hostile": render_run(run_parts(hostile_run(folder / "h"))),
        "evaluation": render_evaluation(read_evaluation_of(write_evaluation(folder / "eval.json"))),
        "dataset": render_page(hostile_dataset(folder / "d")),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


@pytest.mark.parametrize("name", ["run", "hostile", "evaluation", "dataset"])
def test_nothing_runs_and_nothing_is_wider_than_the_screen(name: str, browser: Browser, pages: dict[str, Path]) -> None:
    for width, scheme in ((375, "light"), (1280, "dark")):
        browser.told.clear()
        browser.open(pages[name], width, 800, scheme)
        browser.value("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        assert browser.value("document.documentElement.scrollWidth") <= width
        assert browser.value(OUTSIDE) == []
        assert browser.value("document.scripts.length") == 0
        assert browser.told == []


def test_parts_fold_and_unfold(browser: Browser, pages: dict[str, Path]) -> None:
    browser.told.clear()
    browser.open(pages["run"], 375, 800)
    first = "document.querySelector('#answers ~ details')"
    assert browser.value(f"[{first}.open, {first}.querySelector('pre').checkVisibility()]") == [False, False]
    browser.click("#answers ~ details > summary")
    assert browser.value(f"[{first}.open, {first}.querySelector('pre').checkVisibility()]") == [True, True]
    browser.click("#answers ~ details > summary")
    assert browser.value(f"{first}.open") is False
    assert browser.told == []


def test_levels_of_tokens_differ_in_more_than_colour(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["run"], 1280, 800)
    style = "getComputedStyle(document.querySelector('.tokens .t%d'))"
    seen = [
        browser.value(f"(s => s.borderBottomStyle + s.borderBottomWidth)({style % level})") for level in range(1, 6)
    ]
    assert len(set(seen)) == 5


def test_light_and_dark_differ(browser: Browser, pages: dict[str, Path]) -> None:
    colours = []
    for scheme in ("light", "dark"):
        browser.open(pages["run"], 1280, 800, scheme)
        colours.append(browser.value("getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(255, 255, 255)", "rgb(21, 24, 28)"]
