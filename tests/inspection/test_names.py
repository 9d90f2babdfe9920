from __future__ import annotations

import pytest

from sdft_cli.errors import UsageError
from sdft_cli.inspection.names import find, short_names
from sdft_cli.records import Message, Rejection, Session
from sdft_cli.records.lazy import LazyDataset
from tests.datasets import row, store


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> LazyDataset:
    folder = tmp_path_factory.mktemp("names") / "d"
    messages = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))
    sessions = [Session(name, messages) for name in ("1a289c77-a9da", "1a289c77-a9da#2", "cf564e14-9b07", "a/1", "a")]
    rejected = [
        Rejection("cf564e14-9b07/3", "cf564e14-9b07", 3, "interrupted"),
        Rejection("cf564e14-9b07/lost-7", "cf564e14-9b07", None, "api_error"),
    ]
    store(folder, sessions, [row(sessions[2], 1), row(sessions[4], 1)], [row(sessions[0], 1)], rejected)
    return LazyDataset(folder)


def named(data: LazyDataset, name: str) -> tuple[str, str | None, str | None]:
    found = find(data, name)
    return found.session_id, found.fate and found.fate.row.record_id, found.fate and found.fate.split


def test_names_and_beginnings_of_names(data: LazyDataset) -> None:
    assert named(data, "cf56") == ("cf564e14-9b07", None, None)
    assert named(data, "cf56/1") == ("cf564e14-9b07", "cf564e14-9b07/1", "train")
    assert named(data, "cf56/3") == ("cf564e14-9b07", "cf564e14-9b07/3", None)
    assert named(data, "cf564e14-9b07/lost") == ("cf564e14-9b07", "cf564e14-9b07/lost-7", None)
    assert named(data, "1a289c77-a9da/1") == ("1a289c77-a9da", "1a289c77-a9da/1", "validation")
    assert named(data, "1a289c77-a9da#") == ("1a289c77-a9da#2", None, None)
    assert named(data, "a/1") == ("a/1", None, None)  # a session's own name comes first


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cf564e15", "no session or record cf564e15: did you mean cf564e14-9b07?"),
        ("cf564e14-9b70/1", "did you mean cf564e14-9b07?"),
        ("zzz", "lists the sessions"),
        ("1a28", "begins the names of 2 sessions (1a289c77-a9da, 1a289c77-a9da#2): write more of it"),
        ("cf56/2", "Message 2 of session cf564e14-9b07 is no turn of the dataset: did you mean cf564e14-9b07/1 or"),
        ("\x1b[31m", "no session or record \\x1b[31m: "),
        ("", "begins the names of 5 sessions"),
    ],
)
def test_other_names_are_refused_with_what_may_be_meant(data: LazyDataset, name: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        find(data, name)
    assert said in str(error.value)


def test_short_names_name_one_session_each(data: LazyDataset) -> None:
    names = short_names(data.session_ids)
    assert names["cf564e14-9b07"] == "cf564e14"
    for name, short in names.items():
        assert find(data, short).session_id == name
