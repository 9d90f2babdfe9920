"""Where agents keep their sessions on a machine, and a quick look at what is there: counts, not records.

A look reads the newest files first and no more than `MOST_BYTES` of them, so gigabytes take seconds. Its counts are
those of the files; `sdft prepare` reads everything, and says what became of every turn.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from sdft_cli.errors import MissingPackage, SdftError
from sdft_cli.traces.fields import name_of, stem_of
from sdft_cli.traces.packed import opened
from sdft_cli.traces.rows import LOGS, rows_of, suffix_of
from sdft_cli.traces.source import read_file

MOST_FILES = 20_000
"""So many files of a store are listed."""
MOST_BYTES = 256 * 2**20
"""So much of Claude Code's files is looked at."""
MOST_READ_BYTES = 16 * 2**20
"""The same of other agents' files, whose readers build whole sessions."""
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True)
class Store:
    """Where an agent keeps sessions: a folder below the home folder, or below the one that a variable names."""

    agent: str
    below_home: str
    pattern: str
    variable: tuple[str, str] | None = None
    """An environment variable, and the folder below what it says."""

    def folders(self) -> list[Path]:
        """Return the folders to look in: that of the variable first."""
        named = os.environ.get(self.variable[0]) if self.variable else None
        own = [Path(named).expanduser() / self.variable[1]] if named and self.variable else []
        return list(dict.fromkeys([*own, Path.home() / self.below_home]))


STORES = (
    Store("Claude Code", ".claude/projects", "**/*.jsonl", ("CLAUDE_CONFIG_DIR", "projects")),
    Store("Codex", ".codex/sessions", "**/*.jsonl", ("CODEX_HOME", "sessions")),
    Store("Copilot CLI", ".copilot/session-state", "**/*.jsonl"),
    Store("Cursor", ".cursor/projects", "**/agent-transcripts/**/*.jsonl"),
    Store("Droid", ".factory/sessions", "**/*.jsonl"),
    Store("Gemini CLI", ".gemini/tmp", "*/chats/session-*.json*"),
    Store("OpenClaw", ".openclaw/agents", "*/sessions/*.jsonl"),
    Store("Pi", ".pi/agent/sessions", "**/*.jsonl", ("PI_CODING_AGENT_DIR", "sessions")),
    Store("Qwen Code", ".qwen/projects", "*/chats/*.jsonl"),
    Store("Qwen Code", ".qwen/tmp", "*/chats/*.jsonl"),
)
"""Agents whose files are read as they are."""

EXPORTED = {
    "OpenCode": (".local/share/opencode", "write each session to a file with `opencode export`"),
    "Hermes": (".hermes/state.db", "write its sessions to a file with Hermes' own export"),
}
"""Agents whose sessions are read once exported: where they are kept, and what to do."""


@dataclass
class Contents:
    """What a look at a store found. `looked_bytes` of `bytes` were looked at; the counts are of those."""

    agent: str
    folder: Path
    files: int = 0
    bytes: int = 0
    looked_files: int = 0
    looked_bytes: int = 0
    sessions: int = 0
    turns: int = 0
    output_tokens: int = 0
    longest_prompt: int = 0
    """Tokens; 0: no file says."""
    versions: Counter[str] = field(default_factory=Counter)
    dates: set[str] = field(default_factory=set)
    """The first and the last day, as YYYY-MM-DD."""
    problem: str = ""
    """Why files are not read."""

    def see_date(self, day: str) -> None:
        """Widen the time span."""
        self.dates = {min({*self.dates, day}), max({*self.dates, day})}


def find_stores() -> list[Contents]:
    """Look at every store on this machine that holds a file, the one with the most turns first."""
    places = [(store, folder) for store in STORES for folder in store.folders() if folder.is_dir()]
    found = [look(store.agent, folder, store.pattern) for store, folder in places]
    return sorted((one for one in found if one.files), key=lambda one: (-one.turns, one.agent))


def exported_stores() -> list[tuple[str, Path, str]]:
    """Return the agents on this machine whose sessions have to be exported first, where they are, and what to do."""
    places = {agent: (Path.home() / below, advice) for agent, (below, advice) in EXPORTED.items()}
    return [(agent, path, advice) for agent, (path, advice) in places.items() if path.exists()]


def look(agent: str, folder: Path, pattern: str = "**/*") -> Contents:
    """Look at the files of a folder; `agent` decides how.

    Raises nothing for files that cannot be read: `problem` of what is returned names the first.
    """
    contents = Contents(agent, folder)
    files = []
    for path in islice(_files(folder, pattern), MOST_FILES):
        try:
            status = path.stat()
        except OSError:  # it is gone by now
            continue
        files.append((status.st_mtime, status.st_size, path))
    contents.files, contents.bytes = len(files), sum(size for _, size, _ in files)
    files.sort(key=lambda file: (-file[0], str(file[2])))
    count = _count_claude_code if agent == "Claude Code" else _count_others
    count(contents, files)
    return contents


def _files(folder: Path, pattern: str) -> Iterator[Path]:
    if folder.is_file():
        yield folder
        return
    for path in folder.glob(pattern):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and suffix_of(path) in LOGS and path.is_file():
            yield path


class _Message(msgspec.Struct):
    """What counts of an API message; its content is skipped without building it."""

    id: Any = None
    model: Any = None
    usage: Any = None


class _Line(msgspec.Struct):
    type: Any = None
    sessionId: Any = None
    timestamp: Any = None
    version: Any = None
    uuid: Any = None
    message: _Message | None = None


def _count_claude_code(contents: Contents, files: Iterable[tuple[float, int, Path]]) -> None:
    decoder = msgspec.json.Decoder(_Line)
    sessions: set[str] = set()
    written: dict[str, int] = {}
    for _, _, path in files:
        if contents.looked_bytes >= MOST_BYTES:
            break
        contents.looked_files += 1
        try:
            with opened(path) as file:
                for raw in file:
                    contents.looked_bytes += len(raw)
                    if contents.looked_bytes > MOST_BYTES:
                        break
                    try:
                        line = decoder.decode(raw)
                    except (ValueError, RecursionError):  # another kind of line, or a damaged one
                        continue
                    _count_line(contents, line, stem_of(path), sessions, written)
        except (OSError, SdftError) as error:
            contents.problem = contents.problem or f"{name_of(path)} ({error})"
    contents.sessions, contents.turns, contents.output_tokens = len(sessions), len(written), sum(written.values())


def _count_line(contents: Contents, line: _Line, stem: str, sessions: set[str], written: dict[str, int]) -> None:
    if isinstance(line.timestamp, str) and (day := _DATE.match(line.timestamp)):
        contents.see_date(day[0])
    if isinstance(line.version, str):
        contents.versions[line.version] += 1
    message = line.message
    if line.type != "assistant" or message is None or message.model == "<synthetic>":
        return
    name = next((key for key in (message.id, line.uuid) if isinstance(key, str)), f"{stem}:{len(written)}")
    sessions.add(line.sessionId if isinstance(line.sessionId, str) else stem)
    usage = message.usage if isinstance(message.usage, dict) else {}
    prompt = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    contents.longest_prompt = max(contents.longest_prompt, sum(_tokens(usage.get(key)) for key in prompt))
    written[name] = max(written.get(name, 0), _tokens(usage.get("output_tokens")))


def _tokens(value: Any) -> int:
    """Return a count of tokens, 0 for what is none."""
    return value if type(value) is int and 0 <= value <= 100_000_000 else 0


def _count_others(contents: Contents, files: Iterable[tuple[float, int, Path]]) -> None:
    for date, size, path in files:
        if contents.looked_bytes + size > MOST_READ_BYTES and contents.looked_files:
            break
        contents.looked_files += 1
        contents.looked_bytes += size
        try:
            read = read_file(path)
        except MissingPackage as error:
            contents.problem = str(error)
            return
        except (OSError, SdftError) as error:
            contents.problem = contents.problem or str(error)
            continue
        if read is None or not read.sessions:
            continue
        contents.see_date(datetime.fromtimestamp(date, UTC).date().isoformat())
        contents.sessions += len({session.group for session in read.sessions})
        contents.turns += sum(len(session.assistant_turns()) for session in read.sessions)
        contents.versions.update(_versions(path))


def _versions(path: Path) -> set[str]:
    """Return the agent's version, if the first rows of a file say it."""
    found = set()
    for _, row in islice(rows_of(path), 3):
        holders = [row or {}, *(value for value in (row or {}).values() if isinstance(value, dict))]
        values = [holder.get(key) for holder in holders for key in ("version", "cli_version", "copilotVersion")]
        found |= {value for value in values if isinstance(value, str) and re.match(r"\d+\.\d+", value)}
    return found
