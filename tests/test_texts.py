"""Files and YAML of a person's: whatever is in them, a value or one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sdft_cli.config import load_train_config
from sdft_cli.errors import UsageError
from sdft_cli.prompts.teacher import load_teacher_template
from sdft_cli.prompts.template import load_chat_template
from sdft_cli.stages.project import read_project
from sdft_cli.texts import parse_yaml, read_text

READERS = {
    "Profile": (load_train_config, ".yaml"),
    "Teacher template": (load_teacher_template, ".txt"),
    "Chat template": (load_chat_template, ".jinja"),
    "Project file": (lambda name: read_project(Path(name)), ".yaml"),
}


@pytest.mark.parametrize("what", READERS)
def test_each_file_of_a_persons_is_refused_in_one_sentence(tmp_path: Path, what: str) -> None:
    reader, suffix = READERS[what]
    path = tmp_path / f"x{suffix}"
    for make, reason in (
        (lambda: None, "no such file or directory"),
        (lambda: path.write_bytes(b"a: \x80"), "it is no UTF-8 text"),
        (lambda: path.write_text("a: b", encoding="utf-16"), "it is no UTF-8 text"),
        (lambda: (path.unlink(), path.mkdir()), "is a directory"),
    ):
        make()
        with pytest.raises(UsageError) as error:
            reader(str(path))  # type: ignore[no-untyped-call, operator]
        assert str(error.value).startswith(f"{what} {path} cannot be read ({reason}): ")


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("[user]\r\n{reference}", encoding="utf-8-sig", newline="")
    assert read_text(path, "Teacher template") == "[user]\n{reference}"
    assert [part.role for part in load_teacher_template(str(path)).parts] == ["user"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "line 1: "),
        ("a: 1\nb: c: d", "line 2: mapping values are not allowed here"),
        ("a: \x07", "special characters are not allowed"),
        ("a: 2026-13-40", "month must be in 1..12"),
        ("a: " + "[" * 20_000, "nested too deep"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
        ("a: !!bool x", "a value is not what its tag says"),
        ("a: !!int ''", "a value is not what its tag says"),
        ("a: !!float ''", "a value is not what its tag says"),
        ("a: !!timestamp x", "a value is not what its tag says"),
        ("a: !!int 0b2", "invalid literal"),
        ("a: !!binary \u00fc", "failed to convert"),
    ],
)
def test_what_is_no_yaml_is_said_with_its_line(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        parse_yaml(text)
    assert "\n" not in str(error.value)


PIECES = [*"a1: -[]{},&*!|>'\"#%@`\n\t\r\x00\ud800\u2028e.~<=?", "2026-13-01", "a: ", "- ", "''"]
TAGS = [
    "!!bool ",
    "!!int ",
    "!!float ",
    "!!timestamp ",
    "!!binary ",
    "!!set ",
    "!!omap ",
    "!!pairs ",
    "!!map ",
    "!!null ",
]


@given(st.lists(st.sampled_from(PIECES + TAGS), max_size=30).map("".join))
@example("? {}: 1")
@example("{[a]: 1}")
@example("<<: 1")
@example("0b: 1\n=: 2")
def test_any_text_is_a_value_or_a_sentence(text: str) -> None:
    said = ""
    try:
        parse_yaml(text)
    except ValueError as error:
        said = str(error)
    assert "\n" not in said


def test_a_setting_whose_value_is_no_yaml_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"^--set seed: the value is not valid YAML \(line 1: .*\): write it in quotes"
    ):
        load_train_config("cpu-demo", ["seed=["])
