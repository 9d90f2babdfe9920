"""Tables that hold a whole session of some agent in each row, as the Hub makes of datasets of agents' logs.

The lines stand in `traces` or `trace` (also `loglines`): a list of objects or of their JSON texts, or one text that
holds all. Each row is read by the reader of its agent, as the file that it was.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sdft_cli.errors import DataError, MachineError, SdftError
from sdft_cli.records import Session
from sdft_cli.records.on_disk import OnDisk
from sdft_cli.traces.fields import parsed
from sdft_cli.traces.rows import LOG_LINES, Rows, decode_line
from sdft_cli.traces.types import FileSessions, ReadReport

FORMAT = "agent-traces"
_COLUMNS = ("traces", "trace", LOG_LINES)
_KEYS = frozenset(("type", "info", "schema_version", "sessionId"))
"""What lines of agents have, or a document that is a session."""


def _lines(row: dict[str, Any]) -> list[dict[str, Any] | None]:
    """Return the lines that a row holds, None for what is no object; empty if it holds none."""
    value = next((row[name] for name in _COLUMNS if row.get(name)), None)
    if isinstance(value, str):
        try:
            value = parsed(value)
        except (ValueError, RecursionError):
            value = value.split("\n")
    if isinstance(value, dict):
        value = [value]  # a session that is one document, as OpenCode exports it
    if not isinstance(value, list):
        return []
    lines = [decode_line(x.encode("utf-8", "replace")) if isinstance(x, str) else x for x in value if x != ""]
    return [line if isinstance(line, dict) else None for line in lines]


def looks_like(objects: Iterable[dict[str, Any]]) -> bool:
    """Say whether these first rows hold lines of logs; those of ShareGPT (`from`, `value`) are Hermes'."""
    first = (line for row in objects for line in _lines(row)[:50] if line is not None)
    return any(_KEYS & line.keys() and "from" not in line for line in first)


def _rooted(lines: list[dict[str, Any] | None]) -> list[dict[str, Any] | None]:
    """Give the root of a tree its empty parent again: a table drops what is null."""
    tree = any(line and "parentUuid" in line for line in lines)
    return [{"parentUuid": None, **line} if tree and line and "uuid" in line else line for line in lines]


def _json_line(line: dict[str, Any] | None) -> str:
    """Return a line as it stood in its file; a table's times become texts."""
    try:
        return json.dumps(line, default=str)
    except RecursionError:
        return "null"


def _file_name(row: dict[str, Any], index: int) -> str:
    """Return the name of the file that the row was, as far as it says."""
    given = next((row[key] for key in ("file_path", "session_id") if isinstance(row.get(key), str)), "")
    stem = Path(given.replace("\\", "/").replace("\0", "")).name.removesuffix(".jsonl")[:100]
    return f"{stem or f'row-{index}'}.jsonl"


def read(rows: Rows, read_file: Callable[[Path], FileSessions | None]) -> FileSessions:
    """Read the session of each row with `read_file`; a row that nothing can read is counted as broken, with its name.

    Sessions lie on disk, as in `sessions_of_rows`.

    Raises `DataError` or `MachineError` if that is so for all rows.
    """
    report, failures = ReadReport(), list[SdftError]()
    sessions = OnDisk[Session]()
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, row) in enumerate(rows):
            lines = _lines(row) if row else []
            path = Path(folder) / str(index) / _file_name(row or {}, index)
            path.parent.mkdir()
            path.write_text("".join(f"{_json_line(line)}\n" for line in _rooted(lines)), encoding="utf-8")
            try:
                found = read_file(path) if lines else None
                problem = "no lines of a session" if found is None else ""
            except (DataError, MachineError) as error:
                failures.append(error)
                found, problem = None, str(error)
            path.unlink()
            if found is None:
                report.lines["broken"] += 1
                report.broken.append(f"{name} ({problem})")
            else:
                report.merge(found.report)
                for session in found.sessions:
                    sessions.append(session)
    if not sessions and failures:
        raise failures[0]
    return FileSessions(sessions, report)
