from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sdft_cli.inspection import prompt_lines
from sdft_cli.inspection.prompt_lines import differences, lines_of, written
from sdft_cli.inspection.screen import Screen


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)), st.sampled_from([0, 4_000_000]))
def test_both_sequences_come_back_from_their_differences(one: list[int], other: list[int], most: int) -> None:
    before, prompt_lines.MOST_COMPARED = prompt_lines.MOST_COMPARED, most
    try:
        runs = list(differences(one, other))
    finally:
        prompt_lines.MOST_COMPARED = before
    assert [x for change, run in runs if change != "+" for x in run] == one
    assert [x for change, run in runs if change != "-" for x in run] == other


def test_an_insertion_is_one_run() -> None:
    assert list(differences("abcz", "abcxyz")) == [("=", "abc"), ("+", "xy"), ("=", "z")]


def test_control_tokens_are_marked_and_lines_are_cut_with_a_count() -> None:
    lines = lines_of([("<s>", True), ("a\n<s>\tb\x1b", False), ("</s>", True), ("\n", False)])
    shown = [written(line, Screen()) for line in lines]
    assert shown == ["\u27e6<s>\u27e7a", "<s>\tb\\x1b\u27e6</s>\u27e7", ""]
    assert written((("x" * 2500, False),), Screen()) == "x" * 2000 + " \u2026 500 more characters in this line"
