from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdft_cli.errors import DataError
from sdft_cli.traces.rows import is_one_object, read_lines, rows_of
from sdft_cli.traces.source import read_file, read_source, resolve_source
from tests.traces.lines import line

SESSION = [line("1", None, "user", "hi"), line("2", "1", "assistant", "hello")]


@pytest.mark.parametrize(
    ("text", "lines", "names"),
    [
        ('{"a": 1}\n\n[]\n{\n{"b": 2}', [(1, {"a": 1}), (3, None), (4, None), (5, {"b": 2})], "x.jsonl:{}"),
        (' \n\r\n{"a": 1}\r\n', [(3, {"a": 1})], "x.jsonl:{}"),
        ("", [], "x.jsonl:{}"),
    ],
)
def test_lines_of_a_log_have_their_numbers(text: str, lines: list[Any], names: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(text.encode())
    assert list(read_lines(path)) == lines
    assert list(rows_of(path)) == [(names.format(number), row) for number, row in lines]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('[{"a": 1}, 2, {"b": 2}]', [{"a": 1}, None, {"b": 2}]),
        ('{"loglines": [{"a": 1}, "x"], "version": 1}', [{"a": 1}, None]),
        ('{"loglines": "x"}', [{"loglines": "x"}]),
        ('{"a": 1}', [{"a": 1}]),
        ("[]", []),
        ("7", [None]),
        ("", [None]),
        ("{\n", [None]),
        ('\ufeff{"a": 1}', [{"a": 1}]),
        ('["\\ud800", {"a": "\\ud800"}]', [None, {"a": "\ufffd"}]),
        ('{"a": NaN}\n{"b": 2}\n\n{', [{"a": pytest.approx(float("nan"), nan_ok=True)}, {"b": 2}, None]),
        ("[" * 100_000, [None]),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_json_document_is_its_elements_or_the_lines_of_a_misnamed_log(
    text: str, rows: list[Any], tmp_path: Path
) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text.encode())
    assert list(read_lines(path)) == list(enumerate(rows, start=1))
    assert list(rows_of(path)) == [(f"x.json[{index}]", row) for index, row in enumerate(rows)]


def test_one_object_is_told_from_a_list_and_a_log(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    documents = {'{"a": 1}': True, "{}": True, '[{"a": 1}]': True, "[1]": False, "[{}, {}]": False, "{": False}
    for text, expected in {**documents, '{"a": 1}\n{"b": 2}': False}.items():
        path.write_text(text)
        assert is_one_object(path) == expected, text
    log = tmp_path / "x.jsonl"
    log.write_text('{"a": 1}')
    assert not is_one_object(log)


def test_every_element_of_a_json_session_has_a_fate(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    elements = [*SESSION, 5, SESSION[0], {"type": "summary", "summary": "x"}]
    for document in (elements, {"loglines": elements}):
        path.write_text(json.dumps(document, indent=1))
        found = read_file(path)
        assert found is not None
        assert [m.content for m in found.sessions[0].messages] == ["hi", "hello"]
        assert found.report.fates == {1: "conversation", 2: "conversation", 3: "broken", 4: "duplicate", 5: "summary"}
        assert found.report.broken == ["x.json:3"]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=5), max_size=2) | st.integers(), min_size=2))
def test_a_document_and_a_log_hold_the_same_rows(rows: list[Any], tmp_path: Path) -> None:
    log, document = tmp_path / "x.jsonl", tmp_path / "x.json"
    log.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    document.write_text(json.dumps(rows))
    assert list(read_lines(log)) == list(read_lines(document))


@pytest.mark.parametrize("name", ["[ab]/t.parquet", "q*.parquet", "q?.parquet", "a [v2].parquet", "a::b.parquet"])
def test_a_parquet_path_is_no_pattern(name: str, tmp_path: Path) -> None:
    for other, word in (("a/t.parquet", "wrong"), ("qx.parquet", "wrong"), (name, "right")):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        pl.DataFrame({"a": [word]}).write_parquet(tmp_path / other)
    assert [row for _, row in rows_of(tmp_path / name)] == [{"a": "right"}]


def test_rows_of_a_parquet_file_are_what_datasets_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    when = datetime(2026, 1, 2, 3, 4, 5, 6000)
    rows = [
        {"i": i, "when": when, "messages": [{"role": "user", "content": "hi"}, {"role": None, "content": "é\n"}]}
        for i in range(40)
    ]
    rows[1] = {"i": None, "when": None, "messages": []}
    Dataset.from_list(rows).to_parquet(tmp_path / "x.parquet")
    monkeypatch.setattr(Dataset, "from_parquet", None)  # it would leave a copy of the rows in its cache
    expected = [dict(row) for row in rows]
    expected[0]["messages"] = [{"role": "user", "content": "hi"}, {"content": "é\n"}]
    found = [row for _, row in rows_of(tmp_path / "x.parquet")]
    assert found[0] == expected[0]
    assert found[1] == {"messages": []}
    assert [row["i"] for row in found[2:] if row] == list(range(2, 40))


def test_objects_that_datasets_stores_as_json_text_are_objects(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": pa.array(['{"b": [1, "x"]}', None], pa.json_())}), tmp_path / "x.parquet")
    assert [row for _, row in rows_of(tmp_path / "x.parquet")] == [{"a": {"b": [1, "x"]}}, {}]


def test_a_file_that_is_no_table_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no table PAR1")
    with pytest.raises(DataError, match=r"^x\.parquet cannot be read as a table \(\w+\): check the file\.$"):
        list(rows_of(tmp_path / "x.parquet"))


def test_a_file_name_that_is_no_utf8_can_be_written(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/s\xff.jsonl"))
    try:
        path.write_text(json.dumps({"messages": [{"role": "user"}, {"role": "assistant", "content": "x"}]}) + "\n{")
    except OSError:
        pytest.skip("this file system takes no such name")
    for lines in (None, [{**item, "sessionId": None} for item in SESSION]):
        if lines:
            path.write_text("".join(json.dumps(item) + "\n" for item in lines))
        found = read_source(resolve_source(str(tmp_path)))
        said = [*found.report.broken, *(f"{s.session_id} {s.group} {s.metadata}" for s in found.sessions)]
        assert said
        assert "s\ufffd" in "".join(said).encode().decode()
