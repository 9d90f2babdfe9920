"""Every trace format: how a file of it is recognised, and what reads it. `docs/adding.md` adds one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sdft_cli.errors import DataError
from sdft_cli.records import Session
from sdft_cli.traces import golden, messages, other_agents
from sdft_cli.traces.agents import atif, copilot_cli, gemini_cli, opencode, qwen_code, sts, trace_rows, unread
from sdft_cli.traces.claude_code.lines import looks_like
from sdft_cli.traces.claude_code.reader import FORMAT as CLAUDE_CODE
from sdft_cli.traces.claude_code.reader import read_claude_code
from sdft_cli.traces.claude_code.seen import SeenLines
from sdft_cli.traces.fields import name_of
from sdft_cli.traces.rows import LOGS, SUFFIXES, rows_of, suffix_of
from sdft_cli.traces.types import FileSessions, ReadReport

_SNIFFED_ROWS = 50


@dataclass(frozen=True)
class Reader:
    """A trace format.

    `looks_like` says of the first objects of a file whether they are of this format. `read` is given a file and the
    Claude Code lines of the files before it (others leave these alone), and returns sessions with an account of the
    file. `name` is what data cards and `metadata["format"]` of a session say.
    """

    name: str
    looks_like: Callable[[Sequence[dict[str, Any]]], bool]
    read: Callable[[Path, SeenLines], FileSessions]
    suffixes: tuple[str, ...] = SUFFIXES


def row_reader(
    name: str,
    looks_like: Callable[[Sequence[dict[str, Any]]], bool],
    session_of: Callable[[dict[str, Any], str, ReadReport], Session | list[Session]],
) -> Reader:
    """Return the reader of a format that holds one or more sessions per row: `session_of(row, its name, account)`.

    A row for which it raises ValueError, TypeError, KeyError, AttributeError or RecursionError is counted as broken.
    """
    return Reader(name, looks_like, lambda path, _: messages.sessions_of_rows(rows_of(path), session_of))


def _agent_reader(agent: str) -> Reader:
    return Reader(
        agent,
        lambda first: other_agents.detect(first) == agent,
        lambda path, _: other_agents.read_other_agent(path, agent, rows_of(path)),
    )


def _is_claude_code(objects: Sequence[dict[str, Any]]) -> bool:
    """Say whether these are Claude Code's lines. Gemini CLI's `logs.json` has their keys, but texts as messages."""
    return looks_like(row for row in objects if not isinstance(row.get("message"), str))


def _log_reader(
    name: str, looks_like: Callable[[Sequence[dict[str, Any]]], bool], read: Callable[[Path], FileSessions]
) -> Reader:
    return Reader(name, looks_like, lambda path, _: read(path), LOGS)


def _read_trace_rows(path: Path, seen: SeenLines) -> FileSessions:
    """Read each row's lines as the file that they were, which is none of such rows again."""

    def read_file(inner: Path) -> FileSessions | None:
        reader = reader_for(inner)
        return reader.read(inner, seen) if reader and reader.name != trace_rows.FORMAT else None

    return trace_rows.read(rows_of(path), read_file)


READERS = [
    _log_reader(qwen_code.FORMAT, qwen_code.looks_like, qwen_code.read),  # its lines have the keys of Claude Code's
    Reader(CLAUDE_CODE, _is_claude_code, read_claude_code, LOGS),
    _log_reader(gemini_cli.FORMAT, gemini_cli.looks_like, gemini_cli.read),
    _log_reader(copilot_cli.FORMAT, copilot_cli.looks_like, copilot_cli.read),
    _log_reader(sts.FORMAT, sts.looks_like, sts.read),  # its header may have what Pi's has
    Reader(trace_rows.FORMAT, trace_rows.looks_like, _read_trace_rows),
    row_reader(opencode.FORMAT, opencode.looks_like, opencode.sessions_of),
    row_reader(atif.FORMAT, atif.looks_like, atif.sessions_of),
    row_reader(golden.FORMAT, golden.looks_like, golden.session_of),
    _agent_reader("hermes"),  # has `messages` too, but its system prompt beside them: so it is asked first
    row_reader(messages.FORMAT, messages.looks_like, messages.session_of),
    *(_agent_reader(agent) for agent in other_agents.OTHER_AGENTS if agent != "hermes"),
]
"""In the order in which they are asked: the first that recognises a file reads it."""


def reader_for(path: Path, known_format: str | None = None) -> Reader | None:
    """Decide which reader a file needs, by its first objects; this is the only place where that is decided.

    `known_format` is what a data card says, used where no reader recognises the file; but a JSON document beside Claude
    Code's lines is settings or metadata. None: no reader takes it. Raises `DataError` if the file cannot be read, or is
    of an agent that is recognised and not read.
    """
    first = [row for _, row in islice(rows_of(path), _SNIFFED_ROWS) if row is not None]
    if agent := unread.agent_of(first):
        raise DataError(unread.refusal(name_of(path), agent))
    suffix = suffix_of(path)
    readers = [reader for reader in READERS if suffix in reader.suffixes]
    recognised = next((reader for reader in readers if reader.looks_like(first)), None)
    if recognised or (suffix == ".json" and known_format == CLAUDE_CODE):
        return recognised
    return next((reader for reader in readers if reader.name == known_format), None)
