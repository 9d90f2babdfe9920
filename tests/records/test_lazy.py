from __future__ import annotations

from pathlib import Path

import pytest

from sdft_cli.errors import DataError, UsageError
from sdft_cli.records import Dataset, dataset
from sdft_cli.records.lazy import LazyDataset
from tests.datasets import example_dataset


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """A dataset of several row groups."""
    monkeypatch.setattr(dataset, "ROW_GROUP_ROWS", 3)
    return example_dataset(tmp_path, 8)


def test_pieces_are_those_of_the_whole(whole: Dataset) -> None:
    lazy = LazyDataset(whole.path)
    assert lazy.session_ids == list(whole.sessions)
    assert {name: lazy.session(name) for name in lazy.session_ids} == whole.sessions
    assert lazy.records("train") == [record.row for record in whole.train]
    assert lazy.records("validation") == [record.row for record in whole.validation]
    assert lazy.rejected() == list(whole.rejected)
    name = whole.train[0].row.session_id
    assert lazy.records("train", name) == [r.row for r in whole.train if r.row.session_id == name]
    with pytest.raises(KeyError):
        lazy.session("none")


def test_columns_of_row_groups_are_those_of_the_messages(whole: Dataset) -> None:
    groups = list(LazyDataset(whole.path).groups(("role", "content", "tool_calls.arguments")))
    assert len(groups) == 3
    for group in groups:
        contents, roles = group.of("content").to_pylist(), group.of("role").to_pylist()
        calls, parents = group.calls()
        for name, start, stop in zip(group.ids, group.starts, group.starts[1:], strict=False):
            messages = whole.sessions[name].messages
            assert contents[start:stop] == [m.content for m in messages]
            assert roles[start:stop] == [m.role for m in messages]
            found = [
                (parent - start, call["arguments"])
                for parent, call in zip(parents.to_pylist(), calls.to_pylist(), strict=True)
                if start <= parent < stop
            ]
            assert found == [(i, call.arguments) for i, m in enumerate(messages) for call in m.tool_calls]
    last = whole.validation[0].row.session_id
    assert len(list(LazyDataset(whole.path).groups(("role",), {last}))) == 1


def test_what_is_no_dataset_is_refused(whole: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no dataset"):
        LazyDataset(tmp_path / "none")
    (whole.path / "train.parquet").write_bytes((whole.path / "rejected.parquet").read_bytes())
    with pytest.raises(DataError, match="other columns"):
        LazyDataset(whole.path).records("train")
    (whole.path / "train.parquet").write_bytes((whole.path / "validation.parquet").read_bytes())
    with pytest.raises(DataError, match="not the file that the manifest describes"):
        LazyDataset(whole.path).records("train")
    sessions = whole.path / "sessions.parquet"
    sessions.write_bytes(sessions.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        _ = LazyDataset(whole.path).session_ids
    sessions.unlink()
    with pytest.raises(DataError, match="is missing"):
        _ = LazyDataset(whole.path).session_ids
