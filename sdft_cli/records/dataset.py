"""The dataset folder: sessions stored once, records as pointers, rejects with their reason, a manifest over all.

my-dataset/
  README.md            data card (written by the caller through `extra_files`)
  manifest.json        schema version, source, config, tokenizer and template hashes, funnel, file hashes
  sessions.parquet     session_id, group, messages, tools, metadata
  train.parquet        record pointers with their token counts
  validation.parquet   the same; groups never straddle the split
  rejected.parquet     every dropped assistant turn with its reason
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sdft_cli.errors import DataError, UsageError
from sdft_cli.places import DATA_ROOT, DATASET, meant_folder
from sdft_cli.records.folders import new_folder, sha256_of
from sdft_cli.records.json_files import read_json
from sdft_cli.records.types import Record, RecordRow, Rejection, Session

if TYPE_CHECKING:
    import polars as pl

SCHEMA_VERSION = 1
FORMAT = "sdft-dataset"
TABLES = ("sessions", "train", "validation", "rejected")


def _texts(*names: str) -> dict[str, Any]:
    return dict.fromkeys(names, str)


_MESSAGE = {
    **_texts("role", "content"),
    "tool_calls": [_texts("id", "name", "arguments")],
    **_texts("tool_call_id", "name", "status"),
}
_POINTER = {**_texts("record_id", "session_id"), "turn_index": int}
_LENGTHS = {"prompt_tokens": int, "teacher_prompt_tokens": int, "reference_tokens": int}
_RECORD_COLUMNS: dict[str, Any] = {**_POINTER, **_LENGTHS, "has_tool_call": bool}
COLUMNS: dict[str, dict[str, Any]] = {
    "sessions": {
        **_texts("session_id", "group"),
        "messages": [_MESSAGE],
        "tools": [_texts("name", "description", "parameters", "origin")],
        "metadata": str,
    },
    "train": _RECORD_COLUMNS,
    "validation": _RECORD_COLUMNS,
    "rejected": {**_POINTER, **_texts("reason", "detail"), **_LENGTHS},
}
"""The columns of each table by name: `str`, `int`, `bool`, or `[{...}]` for a list of structures."""


def _schema(table: str) -> pl.Schema:
    """Return the columns of a table as polars names their types."""
    import polars as pl  # not before a table is read or written: importing it takes a third of a second

    def kind_of(kind: Any) -> Any:
        if isinstance(kind, list):
            return pl.List(pl.Struct({name: kind_of(inner) for name, inner in kind[0].items()}))
        return {str: pl.String, int: pl.Int64, bool: pl.Boolean}[kind]

    return pl.Schema({name: kind_of(kind) for name, kind in COLUMNS[table].items()})


@dataclass(frozen=True)
class Dataset:
    """A dataset folder in memory. `train` and `validation` are views into `sessions`."""

    path: Path
    manifest: Mapping[str, Any]
    sessions: Mapping[str, Session]
    train: Sequence[Record]
    validation: Sequence[Record]
    rejected: Sequence[Rejection]

    def split(self, name: str) -> Sequence[Record]:
        """Return the records of `train` or `validation`."""
        return {"train": self.train, "validation": self.validation}[name]


def _session_row(session: Session) -> dict[str, Any]:
    row: dict[str, Any] = msgspec.to_builtins(replace(session, metadata={}))
    for message in row["messages"]:
        del message["reasoning"], message["seen_tokens"]
    return {**row, "metadata": json.dumps(dict(session.metadata), ensure_ascii=False, sort_keys=True)}


def session_of(row: Mapping[str, Any]) -> Session:
    """Return the session that a row of `sessions.parquet` holds."""
    return msgspec.convert({**row, "metadata": json.loads(row["metadata"])}, Session)


ROW_GROUP_CHARACTERS, ROW_GROUP_ROWS = 16 << 20, 100_000
"""A row group of a table is closed at so much text or so many rows, so that writing needs the memory of one."""


def row_groups(
    rows: Iterable[dict[str, Any]], characters_of: Callable[[dict[str, Any]], int], most: int = ROW_GROUP_CHARACTERS
) -> Iterator[list[dict[str, Any]]]:
    """Cut rows into groups that fit into memory, each closed at `most` characters of text."""
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        group.append(row)
        size += characters_of(row)
        if size >= most or len(group) >= ROW_GROUP_ROWS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _characters_of(row: Mapping[str, Any]) -> int:
    messages = row.get("messages", ())
    return sum(len(m["content"]) + sum(len(call["arguments"]) for call in m["tool_calls"]) for m in messages)


def _write_table(path: Path, table: str, rows: Iterable[dict[str, Any]]) -> int:
    import polars as pl
    import pyarrow.parquet as pq

    schema = _schema(table)

    def arrow(group: list[dict[str, Any]]) -> Any:
        frame = pl.DataFrame(group, schema=schema, orient="row")
        return frame.to_arrow(compat_level=pl.CompatLevel.oldest())

    count = 0
    with pq.ParquetWriter(path, arrow([]).schema, compression="zstd") as writer:
        for group in row_groups(rows, _characters_of):
            writer.write_table(arrow(group))
            count += len(group)
    return count


def write_dataset(
    target: Path,
    sessions: Iterable[Session],
    splits: Mapping[str, Iterable[RecordRow]],
    rejected: Iterable[Rejection],
    manifest: Mapping[str, Any],
    extra_files: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a dataset folder, all of it or nothing; raises as `new_folder`.

    Args:
        target: the folder to create; refused if it exists, unless `overwrite`.
        sessions: every session that a record or a rejection points into; stored without reasoning.
        splits: `train` and `validation` rows.
        rejected: every dropped turn.
        manifest: what the caller knows (source, config, hashes, funnel); format, schema version, row counts and file
            hashes are added here.
        extra_files: name -> text, e.g. the data card.
    """
    rows: dict[str, Iterable[dict[str, Any]]] = {
        "sessions": map(_session_row, sessions),
        "train": map(asdict, splits["train"]),
        "validation": map(asdict, splits["validation"]),
        "rejected": map(asdict, rejected),
    }
    with new_folder(target, "manifest.json", overwrite) as folder:
        files = {}
        for table in TABLES:
            path = folder / f"{table}.parquet"
            count = _write_table(path, table, rows[table])
            files[path.name] = {"sha256": sha256_of(path), "rows": count}
        for name, text in (extra_files or {}).items():
            (folder / name).write_text(text, encoding="utf-8")
        document = {"format": FORMAT, "schema_version": SCHEMA_VERSION, **manifest, "files": files}
        (folder / "manifest.json").write_text(
            json.dumps(document, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8"
        )
    return target


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check `manifest.json` of a dataset folder.

    Raises:
        UsageError: there is no such folder.
        DataError: the manifest is missing, is not JSON, or was not written by `sdft prepare`.
    """
    path = folder / "manifest.json"
    if not folder.exists():
        otherwise = "name the folder of one, or run `sdft prepare` to make it."
        raise UsageError(f"There is no dataset {folder}: {meant_folder(folder, DATASET, DATA_ROOT, otherwise)}")
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: give a dataset written by `sdft prepare`.")
    if not path.is_file():
        raise DataError(f"{path} is missing: {folder} is not a dataset folder; run `sdft prepare` to make one.")
    manifest = read_json(path, "run `sdft prepare` again")
    if manifest.get("format") != FORMAT:
        raise DataError(f"{path} was not written by `sdft prepare`: give a folder that was.")
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise DataError(
            f"{path} has schema version {manifest.get('schema_version')}, this sdft reads {SCHEMA_VERSION}: "
            "run `sdft prepare` again."
        )
    return manifest


def _read_table(folder: Path, table: str, manifest: Mapping[str, Any]) -> pl.DataFrame:
    import polars as pl

    path = folder / f"{table}.parquet"
    if not path.is_file():
        raise DataError(f"{path} is missing: the dataset is incomplete; run `sdft prepare` again.")
    expected = manifest.get("files", {}).get(path.name, {})
    if sha256_of(path) != expected.get("sha256"):
        raise DataError(
            f"{path} is not the file that the manifest describes (truncated or changed): run `sdft prepare` again."
        )
    try:
        frame = pl.read_parquet(path)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path} cannot be read as Parquet ({error}): run `sdft prepare` again.") from error
    if frame.schema != _schema(table):
        raise DataError(f"{path} has other columns than schema version {SCHEMA_VERSION}: run `sdft prepare` again.")
    return frame


def read_dataset(folder: Path) -> Dataset:
    """Read a dataset folder back; what was written compares equal.

    Raises:
        UsageError: there is no such folder.
        DataError: a file is missing, truncated, changed or foreign; the message names the file.
    """
    manifest = read_manifest(folder)
    frames = {table: _read_table(folder, table, manifest) for table in TABLES}
    sessions = {row["session_id"]: session_of(row) for row in frames["sessions"].iter_rows(named=True)}

    def records(table: str) -> list[Record]:
        records = []
        for row in frames[table].iter_rows(named=True):
            pointer = RecordRow(**row)
            session = sessions.get(pointer.session_id)
            if session is None or not 0 <= pointer.turn_index < len(session.messages):
                raise DataError(
                    f"{folder / table}.parquet points to {pointer.record_id}, which sessions.parquet does not hold: "
                    "run `sdft prepare` again."
                )
            records.append(Record(pointer, session))
        return records

    rejected = [Rejection(**row) for row in frames["rejected"].iter_rows(named=True)]
    return Dataset(folder, manifest, sessions, records("train"), records("validation"), rejected)
