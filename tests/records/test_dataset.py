from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdft_cli.errors import DataError, MachineError, UsageError
from sdft_cli.records import Message, RecordRow, Rejection, Session, ToolCall, ToolSchema, read_dataset, write_dataset
from sdft_cli.records.folders import new_folder
from sdft_cli.report.cards import dataset_card
from tests.datasets import example_dataset

SESSION = Session(
    "s",
    (
        Message("user", "hi\x00\u2028 \U0001f600"),
        Message("assistant", "", (ToolCall("c", "Read", '{"b": 1, "a": null}'),)),
        Message("tool", "out", tool_call_id="c", name="Read"),
        Message("assistant", "API Error", status="api_error"),
    ),
    (ToolSchema("Read", "Read a file.", '{"type": "object"}', "declared"),),
    "g",
    {"format": "claude-code", "models": ["m"]},
)
ROW = RecordRow("s/1", "s", 1, 10, 20, 5, True)
REJECTED = [
    Rejection("s/3", "s", 3, "api_error"),
    Rejection("s/abandoned-x", "s", None, "abandoned_branch"),
    Rejection("s/1", "s", 1, "over_prompt_cap", "detail", 1, 2, 3),
]


def write(folder: Path, **changes: object) -> Path:
    arguments: dict[str, object] = {
        "sessions": [SESSION],
        "splits": {"train": [ROW], "validation": []},
        "rejected": REJECTED,
        "manifest": {"source": "x"},
    }
    return write_dataset(folder, **{**arguments, **changes})  # type: ignore[arg-type]


def test_round_trip(tmp_path: Path) -> None:
    found = read_dataset(write(tmp_path / "d", extra_files={"README.md": "# card\n"}))
    assert found.sessions == {"s": SESSION}
    assert [r.row for r in found.train] == [ROW]
    assert found.validation == []
    assert found.rejected == REJECTED
    assert found.manifest["source"] == "x"
    record = found.train[0]
    assert record.context == SESSION.messages[:1]
    assert record.reference is found.sessions["s"].messages[1]
    assert (tmp_path / "d" / "README.md").read_text() == "# card\n"


TEXT = st.text(st.characters(blacklist_categories=("Cs",)), max_size=20)
MESSAGE = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "assistant", "tool"]),
    content=TEXT,
    tool_calls=st.lists(st.builds(ToolCall, id=TEXT, name=TEXT, arguments=TEXT), max_size=2).map(tuple),
    tool_call_id=st.none() | TEXT,
    name=st.none() | TEXT,
    status=st.none() | TEXT,
)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(MESSAGE, min_size=1, max_size=4),
    st.lists(st.builds(ToolSchema, name=TEXT, description=TEXT, parameters=TEXT), max_size=2),
    st.dictionaries(TEXT, st.none() | st.integers(-(2**60), 2**60) | TEXT | st.lists(TEXT, max_size=2), max_size=3),
)
def test_any_session_comes_back_equal(messages: list[Message], tools: list[ToolSchema], metadata: dict) -> None:
    session = Session("s", tuple(messages), tuple(tools), "g", metadata)
    with TemporaryDirectory() as folder:
        path = write(Path(folder) / "d", sessions=[session], splits={"train": [], "validation": []}, rejected=[])
        assert read_dataset(path).sessions == {"s": session}


def test_the_same_content_is_the_same_bytes(tmp_path: Path) -> None:
    one, two = write(tmp_path / "1"), write(tmp_path / "2")
    assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in two.iterdir()}


@pytest.mark.parametrize("name", ["manifest.json", "sessions.parquet", "train.parquet", "rejected.parquet"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, damage: str) -> None:
    folder = write(tmp_path / "d")
    path = folder / name
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    else:
        data[0] ^= 0xFF
        path.write_bytes(data)
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        read_dataset(folder)


def test_a_foreign_table_a_foreign_folder_and_a_newer_schema_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is missing"):
        read_dataset(tmp_path / "empty")
    with pytest.raises(UsageError, match="There is no dataset"):
        read_dataset(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is not a folder"):
        read_dataset(tmp_path / "file")
    folder = write(tmp_path / "d")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    with pytest.raises(DataError, match="schema version 99"):
        read_dataset(folder)
    (folder / "manifest.json").write_text('{"format": "other"}')
    with pytest.raises(DataError, match="was not written by"):
        read_dataset(folder)
    import hashlib

    pl.DataFrame({"x": [1]}).write_parquet(folder / "train.parquet")
    manifest["files"]["train.parquet"]["sha256"] = hashlib.sha256((folder / "train.parquet").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"train\.parquet has other columns"):
        read_dataset(folder)


def test_a_pointer_into_nowhere_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "d", splits={"train": [replace(ROW, turn_index=9)], "validation": []})
    with pytest.raises(DataError, match=r"which sessions\.parquet does not hold"):
        read_dataset(folder)


def test_an_existing_folder_is_refused_unless_overwritten(tmp_path: Path) -> None:
    folder = write(tmp_path / "d")
    with pytest.raises(UsageError, match="--overwrite"):
        write(folder)
    write(folder, manifest={"source": "new"}, overwrite=True)
    assert read_dataset(folder).manifest["source"] == "new"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match=r"holds no manifest\.json"):
        write(tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        write(tmp_path / "file")


def test_a_failure_leaves_nothing_and_keeps_the_old_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "d")
    before = sorted(p.name for p in tmp_path.iterdir())

    def half_write(target: Path, error: Exception) -> None:
        with new_folder(target, "manifest.json", overwrite=True) as scratch:
            (scratch / "half").write_text("x")
            raise error

    with pytest.raises(ZeroDivisionError):
        half_write(folder, ZeroDivisionError())
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert read_dataset(folder).sessions == {"s": SESSION}
    with pytest.raises(MachineError, match="No space left"):
        half_write(tmp_path / "e", OSError(28, os.strerror(28)))
    assert not (tmp_path / "e").exists()


def test_load_dataset_reads_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import load_dataset

    manifest = {
        "sdft_version": "0",
        "source": {"name": "x", "kind": "folder", "revision": None},
        "config": {"model": "m", "max_prompt_tokens": 1, "max_rollout_tokens": 1, "max_seq_tokens": 1},
        "funnel": {
            "sessions": 1,
            "turns": 2,
            "kept": 2,
            "train": 1,
            "validation": 1,
            "rejected": {"api_error": 1},
        },
    }
    folder = write(
        tmp_path / "d",
        splits={"train": [ROW], "validation": [ROW]},
        extra_files={"README.md": dataset_card(manifest, "mit")},
    )
    loaded = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert loaded["train"]["record_id"] == loaded["validation"]["record_id"] == ["s/1"]
    sessions = load_dataset(str(folder), "sessions", cache_dir=str(tmp_path / "cache"))["train"]
    assert sessions[0]["messages"][1]["tool_calls"][0]["arguments"] == '{"b": 1, "a": null}'


@pytest.mark.slow
def test_load_dataset_reads_what_prepare_writes_without_a_network(tmp_path: Path) -> None:
    """Every configuration that the card names, in a process of its own that is offline, as the README says."""
    data = example_dataset(tmp_path, 6)
    manifest = {key: value for key, value in data.manifest.items() if key != "files"}
    rejected = [Rejection("s/9", data.train[0].session.session_id, 9, "over_prompt_cap", "long", 900, 910, 4)]
    splits = {"train": [r.row for r in data.train], "validation": [r.row for r in data.validation]}
    card = dataset_card({**manifest, "funnel": {**manifest["funnel"], "rejected": {"over_prompt_cap": 1}}}, "mit")
    folder = write_dataset(tmp_path / "d", data.sessions.values(), splits, rejected, manifest, {"README.md": card})
    code = (
        "import json, sys\nfrom datasets import get_dataset_config_names, load_dataset\n"
        "folder = sys.argv[1]\nfound = {}\n"
        "for name in get_dataset_config_names(folder):\n"
        "    splits = load_dataset(folder, name)\n"
        "    found[name] = {split: rows.to_list() for split, rows in splits.items()}\n"
        "assert load_dataset(folder).keys() == {'train', 'validation'}\n"
        "print(json.dumps(found))"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], env=environment, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == {"records", "sessions", "rejected"}
    assert found["records"] == {name: [asdict(row) for row in rows] for name, rows in splits.items()}
    assert found["rejected"] == {"train": [asdict(rejected[0])]}
    (split,) = found["sessions"].values()
    assert [one["session_id"] for one in split] == list(data.sessions)
    calls = [c["name"] for one in split for m in one["messages"] for c in m["tool_calls"]]
    assert calls == [c.name for one in data.sessions.values() for m in one.messages for c in m.tool_calls]
