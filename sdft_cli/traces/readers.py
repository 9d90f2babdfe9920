"""Every trace format: how a file of it is recognised, and what reads it. `docs/adding.md` adds one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sdft_cli.records import Session
from sdft_cli.traces import golden, messages, other_agents
from sdft_cli.traces.claude_code.lines import looks_like
from sdft_cli.traces.claude_code.reader import FORMAT as CLAUDE_CODE
from sdft_cli.traces.claude_code.reader import read_claude_code
from sdft_cli.traces.claude_code.seen import SeenLines
from sdft_cli.traces.rows import SUFFIXES, rows_of
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
    session_of: Callable[[dict[str, Any], str, ReadReport], Session],
) -> Reader:
    """Return the reader of a format that holds a session per row: `session_of(row, name of the row, account)`.

    A row for which it raises ValueError, TypeError, KeyError or AttributeError is counted as broken.
    """
    return Reader(name, looks_like, lambda path, _: messages.sessions_of_rows(rows_of(path), session_of))


def _agent_reader(agent: str) -> Reader:
    return Reader(
        agent,
        lambda first: other_agents.detect(first) == agent,
        lambda path, _: other_agents.read_other_agent(path, agent, rows_of(path)),
    )


READERS = [
    Reader(CLAUDE_CODE, looks_like, read_claude_code, (".jsonl",)),
    row_reader(golden.FORMAT, golden.looks_like, golden.session_of),
    _agent_reader("hermes"),  # has `messages` too, but its system prompt beside them: so it is asked first
    row_reader(messages.FORMAT, messages.looks_like, messages.session_of),
    *(_agent_reader(agent) for agent in other_agents.OTHER_AGENTS if agent != "hermes"),
]
"""In the order in which they are asked: the first that recognises a file reads it."""


def reader_for(path: Path, known_format: str | None = None) -> Reader | None:
    """Decide which reader a file needs, by its first objects; this is the only place where that is decided.

    `known_format` is what a data card says, used where no reader recognises the file. None: no reader takes it. Raises
    `DataError` if the file is a table that cannot be read.
    """
    first = [row for _, row in islice(rows_of(path), _SNIFFED_ROWS) if row is not None]
    readers = [reader for reader in READERS if path.suffix in reader.suffixes]
    recognised = (reader for reader in readers if reader.looks_like(first))
    return next(recognised, None) or next((reader for reader in readers if reader.name == known_format), None)
