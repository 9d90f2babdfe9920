"""Where sessions come from: a file, a folder, or a Hub dataset; and which reader a file needs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdft_cli.errors import DataError, MachineError
from sdft_cli.records import Session
from sdft_cli.traces import claude_code, messages
from sdft_cli.traces.jsonl import read_lines
from sdft_cli.traces.types import FileSessions, ReadReport

SUFFIXES = (".jsonl", ".json", ".parquet")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SNIFFED_LINES = 50


@dataclass(frozen=True)
class Source:
    """A resolved source: its name as the user gave it, its kind, the pinned Hub commit if any, and its files."""

    name: str
    kind: str
    root: Path
    files: tuple[Path, ...]
    ignored: tuple[str, ...] = ()
    revision: str | None = None

    def describe(self) -> dict[str, Any]:
        """Return what the manifest records; no path of this machine is in it."""
        name = self.name if self.kind == "hub" else self.root.name
        return {"name": name, "kind": self.kind, "revision": self.revision, "files": len(self.files)}


def resolve_source(name: str, revision: str | None = None) -> Source:
    """Find the trace files behind a path or a Hub dataset id.

    Raises:
        DataError: the path or dataset does not exist, or holds no trace file.
        MachineError: the Hub cannot be reached.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return Source(name, "file", path, (path,))
    if path.is_dir():
        return _folder(name, "folder", path)
    if _HUB_ID.fullmatch(name) and not name.startswith((".", "/")):
        root, commit = _download(name, revision)
        return replace(_folder(name, "hub", root), revision=commit)
    raise DataError(f"{name} is no file, no folder and no Hub dataset id (owner/name): check the name.")


def _folder(name: str, kind: str, root: Path) -> Source:
    found = sorted(p for p in root.rglob("*") if p.is_file() and not _hidden(p, root))
    files = tuple(p for p in found if p.suffix in SUFFIXES)
    if not files:
        raise DataError(f"{name} holds no trace file ({', '.join(SUFFIXES)}): give a folder or dataset with sessions.")
    ignored = tuple(str(p.relative_to(root)) for p in found if p.suffix not in SUFFIXES)
    return Source(name, kind, root, files, ignored)


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _download(dataset: str, revision: str | None) -> tuple[Path, str]:
    """Download a Hub dataset at one resolved commit; return its folder and the commit."""
    import httpx
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        commit = HfApi().dataset_info(dataset, revision=revision).sha
        folder = snapshot_download(dataset, repo_type="dataset", revision=commit)
    except RepositoryNotFoundError as error:
        raise DataError(
            f"The Hub has no public dataset {dataset} (nor is there a file or folder of that name): check the name, "
            "or log in with `hf auth login` if it is private."
        ) from error
    except HfHubHTTPError as error:
        raise MachineError(f"The Hub refused {dataset} ({error.response.status_code}): try again later.") from error
    except (httpx.HTTPError, OfflineModeIsEnabled, LocalEntryNotFoundError, OSError) as error:
        raise MachineError(
            f"The Hub cannot be reached and {dataset} is no local path: check the network, or give a local folder."
        ) from error
    return Path(folder), str(commit)


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Rows of a `.json` document: a list of objects, or one object."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        value = None
    for index, row in enumerate(value if isinstance(value, list) else [value]):
        yield f"{path.name}[{index}]", row if isinstance(row, dict) else None


def _without_nulls(value: Any) -> Any:
    """Drop the null keys that Parquet's struct columns pad every row with."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    from datasets import Dataset, disable_progress_bars, enable_progress_bars

    disable_progress_bars()
    try:
        rows = Dataset.from_parquet(str(path))
    except Exception as error:  # datasets wraps pyarrow's errors in several classes of its own
        raise DataError(f"{path} cannot be read as Parquet ({type(error).__name__}): check the file.") from error
    finally:
        enable_progress_bars()
    for index, row in enumerate(rows):
        yield f"{path.name}[{index}]", _without_nulls(row)


def _sniff(path: Path) -> list[dict[str, Any]]:
    """Return the first objects of a file, enough to tell its format."""
    if path.suffix == ".json":
        return [row for _, row in _json_rows(path) if row is not None][:_SNIFFED_LINES]
    if path.suffix == ".parquet":
        return [row for _, (_, row) in zip(range(_SNIFFED_LINES), _parquet_rows(path), strict=False)]
    return [row for _, (_, row) in zip(range(_SNIFFED_LINES), read_lines(path), strict=False) if row is not None]


def read_file(path: Path, seen: claude_code.SeenLines | None = None) -> FileSessions | None:
    """Read one trace file with the reader that its first lines ask for, or return None if no reader knows them.

    `seen` holds the Claude Code lines that earlier files of the source hold.
    """
    first = _sniff(path)
    if path.suffix == ".jsonl" and claude_code.looks_like(first):
        return claude_code.read_claude_code(path, seen)
    if messages.looks_like(first):
        readers: dict[str, Callable[[Path], FileSessions]] = {
            ".jsonl": messages.read_messages,
            ".json": lambda p: messages.sessions_of_rows(_json_rows(p)),
            ".parquet": lambda p: messages.sessions_of_rows(_parquet_rows(p)),
        }
        return readers[path.suffix](path)
    return None


def _unique(sessions: Sequence[Session], taken: set[str], report: ReadReport) -> Iterator[Session]:
    """Give a session whose id another file already used a new id in the same group; count it."""
    for session in sessions:
        name, number = session.session_id, 1
        while name in taken:
            number += 1
            name = f"{session.session_id}~{number}"
        if number > 1:
            report.notes["repeated_session_ids"] += 1
        taken.add(name)
        yield session if number == 1 else replace(session, session_id=name)


def read_source(
    source: Source, limit: int | None = None, progress: Callable[[Path], None] = lambda path: None
) -> FileSessions:
    """Read the sessions of a source, file by file in the order of their names, subagents' files last.

    A session that was resumed in a second file is in the group of the first, and its repeated turns count once.

    Args:
        source: what `resolve_source` returned.
        limit: stop after this many sessions.
        progress: called with each file before it is read.

    Raises:
        DataError: no file holds a session with an assistant turn.
    """
    report, taken, seen = ReadReport(), set[str](), claude_code.SeenLines()
    sessions: list[Session] = []
    unread = sorted(source.files, key=lambda p: p.name.startswith("agent-"))
    while unread and (limit is None or len(sessions) < limit):
        path = unread.pop(0)
        progress(path)
        found = read_file(path, seen)
        if found is None:
            report.notes["unrecognised_files"] += 1
            report.broken.append(path.name)
            continue
        report.merge(found.report)
        sessions.extend(_unique(found.sessions, taken, report))
    sessions = [replace(s, group=seen.root(s.group)) for s in sessions]
    if limit is not None:
        report.notes["sessions_over_limit"] += max(0, len(sessions) - limit)
        report.notes["files_not_read"] += len(unread)
        sessions = sessions[:limit]
    if not sessions:
        raise DataError(
            f"No session with an assistant turn in {source.name} ({len(source.files)} file(s) read): "
            'give Claude Code JSONL, or lines of {"messages": [...]}.'
        )
    return FileSessions(sessions, report)
