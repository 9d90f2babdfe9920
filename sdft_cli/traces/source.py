"""Where sessions come from: a file, a folder, or a Hub dataset. Its files are read one after the other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdft_cli.errors import DataError, MachineError, SdftError, UsageError, did_you_mean
from sdft_cli.records import Session
from sdft_cli.records.on_disk import Changed, OnDisk
from sdft_cli.traces.claude_code.seen import SeenLines
from sdft_cli.traces.fields import name_of, no_surrogates
from sdft_cli.traces.readers import reader_for
from sdft_cli.traces.rows import SUFFIXES, is_one_object, suffix_of
from sdft_cli.traces.types import FileSessions, ReadReport

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """A resolved source: its name as the user gave it, its kind, the pinned Hub commit if any, and its files."""

    name: str
    kind: str
    root: Path
    files: tuple[Path, ...]
    ignored: tuple[str, ...] = ()
    revision: str | None = None
    format: str | None = None
    """The format that a data card names, for files whose first lines show none."""

    def describe(self) -> dict[str, Any]:
        """Return what the manifest records; no path of this machine is in it."""
        name = self.name if self.kind == "hub" else name_of(self.root)
        return {"name": name, "kind": self.kind, "revision": self.revision, "files": len(self.files)}


def resolve_source(name: str, revision: str | None = None) -> Source:
    """Find the trace files behind a path or a Hub dataset id.

    Raises:
        UsageError: the path or dataset does not exist.
        DataError: it holds no trace file.
        MachineError: the Hub cannot be reached.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return Source(name, "file", path, (path,))
    if path.is_dir():
        return _folder(name, "folder", path)
    if _HUB_ID.fullmatch(name) and suffix_of(path) not in SUFFIXES:
        root, commit = _download(name, revision)
        return replace(_folder(name, "hub", root), revision=commit)
    near = did_you_mean(path.name, _beside(path), "check the name.")
    raise UsageError(f"{name} is no file, no folder and no Hub dataset id (owner/name): {near}")


def _beside(path: Path) -> list[str]:
    """Return the names in a path's folder; none where there is no such folder."""
    try:
        return sorted(other.name for other in path.parent.iterdir())
    except OSError:
        return []


def _folder(name: str, kind: str, root: Path) -> Source:
    visible = (p for p in root.rglob("*") if not any(part.startswith(".") for part in p.relative_to(root).parts))
    every = sorted(p for p in visible if p.is_file())
    saved = {p.parent for p in every if p.suffix == ".arrow"}
    files = tuple(p for p in every if suffix_of(p) in SUFFIXES and not (p.parent in saved and _bookkeeping(p)))
    if not files:
        raise DataError(f"{name} holds no trace file ({', '.join(SUFFIXES)}): give a folder or dataset with sessions.")
    ignored = tuple(str(no_surrogates(str(p.relative_to(root)))) for p in every if p not in files)
    return Source(name, kind, root, files, ignored)


def _bookkeeping(path: Path) -> bool:
    """Say whether `datasets` wrote this file beside the rows that `save_to_disk` stores."""
    return path.name in ("state.json", "dataset_info.json") or path.name.startswith("cache-")


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
        raise UsageError(
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


def read_file(path: Path, known_format: str | None = None, seen: SeenLines | None = None) -> FileSessions | None:
    """Read one trace file with the reader that `reader_for` chooses, or return None if there is none.

    `seen`: the Claude Code lines that earlier files of the source hold. Raises `DataError` if the file is damaged as a
    whole, `MachineError` if it is another agent's and teich is not installed.
    """
    reader = reader_for(path, known_format)
    return reader.read(path, seen or SeenLines()) if reader else None


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
    source: Source,
    limit: int | None = None,
    progress: Callable[[Path], None] = lambda path: None,
    every_branch: bool = False,
) -> FileSessions:
    """Read the sessions of a source, file by file in the order of their names, subagents' files last.

    A session that was resumed in a second file is in the group of the first, and its repeated turns count once. At
    most `limit` sessions are returned, on disk; with `every_branch`, branches that were given up are sessions too;
    `progress` is called with each file before it is read. A file that cannot be read at all is counted and named;
    if nothing else can be read, its error is raised. A JSON object beside the sessions that no reader takes
    (settings, metadata) is counted and named as ignored.

    Raises:
        DataError: no file holds a session with an assistant turn.
        MachineError: the files are another agent's and teich is not installed.
    """
    report, taken, seen = ReadReport(), set[str](), SeenLines(source.files, every_branch)
    failures: list[SdftError] = []
    sessions = OnDisk[Session]()
    unread = sorted(source.files, key=lambda p: p.name.startswith("agent-"))
    while unread and (limit is None or len(sessions) < limit):
        path = unread.pop(0)
        progress(path)
        try:
            read = read_file(path, source.format, seen)
        except (DataError, MachineError) as error:
            failures.append(error)
            report.notes["unreadable_files"] += 1
            report.broken.append(f"{name_of(path)} ({error})")
            continue
        if read is None and source.kind != "file" and is_one_object(path):
            report.notes["files_ignored"] += 1
            report.ignored.append(name_of(path))
            continue
        if read is None:
            report.notes["unrecognised_files"] += 1
            report.broken.append(name_of(path))
            continue
        report.merge(read.report)
        for session in _unique(read.sessions, taken, report):
            if limit is None or len(sessions) < limit:
                sessions.append(session)
            else:
                report.notes["sessions_over_limit"] += 1
    if limit is not None:
        report.notes["files_not_read"] += len(unread)
    if not sessions and failures:
        raise failures[0]
    if not sessions:
        first = next((f" First problem: {name}." for name in (*report.broken, *report.ignored)), "")
        raise DataError(
            f"No session with an assistant turn in {source.name} ({len(source.files)} file(s) read): "
            f'give Claude Code JSONL, or lines of {{"messages": [...]}}.{first}'
        )
    return FileSessions(Changed(sessions, lambda _, s: replace(s, group=seen.root(s.group))), report)
