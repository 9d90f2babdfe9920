"""`sdft prepare` as a function: source -> sessions -> turns -> records, with everything counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdft_cli import __version__
from sdft_cli.config import PrepareConfig
from sdft_cli.errors import DataError
from sdft_cli.prepare.filters import Reason, content_reason, length_reason
from sdft_cli.prepare.reasoning import strip_session
from sdft_cli.prepare.split import validation_groups
from sdft_cli.prompts.chat import ChatPrompts, TemplateError
from sdft_cli.records import Record, RecordRow, Rejection, Session, write_dataset
from sdft_cli.records.types import record_id_of
from sdft_cli.traces.source import Source, read_source
from sdft_cli.traces.tools import with_tools
from sdft_cli.traces.types import FileSessions, ReadReport

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and how much there is."""


@dataclass
class Funnel:
    """What went in and what came out. `turns == kept + sum(rejected)` always; `check` raises where it does not."""

    sessions: int = 0
    turns: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    train: int = 0
    validation: int = 0
    validation_sessions: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    lines: Counter[str] = field(default_factory=Counter)

    @property
    def kept(self) -> int:
        return self.train + self.validation

    def check(self) -> None:
        """Raise AssertionError if a turn is unaccounted for: a fault of sdft, never of the data."""
        if self.turns != self.kept + sum(self.rejected.values()):
            raise AssertionError(f"funnel does not add up: {self}")

    def as_dict(self) -> dict[str, Any]:
        """Return the funnel for the manifest and for `--json`."""
        return {
            "sessions": self.sessions,
            "turns": self.turns,
            "kept": self.kept,
            "train": self.train,
            "validation": self.validation,
            "validation_sessions": self.validation_sessions,
            "rejected": dict(sorted(self.rejected.items())),
            "lines": dict(sorted(self.lines.items())),
            "notes": dict(sorted((k, v) for k, v in self.notes.items() if v)),
        }


@dataclass(frozen=True)
class Prepared:
    """The result in memory, before it is written."""

    sessions: Sequence[Session]
    rows: Sequence[RecordRow]
    rejected: Sequence[Rejection]
    held_out: set[str]
    funnel: Funnel
    report: ReadReport


def _measure(session: Session, turn: int, prompts: ChatPrompts, config: PrepareConfig) -> RecordRow | Rejection:
    """Count the tokens of one turn and keep it, or reject it by the cap that it breaks."""
    name = record_id_of(session.session_id, turn)
    has_call = bool(session.messages[turn].tool_calls)
    record = Record(RecordRow(name, session.session_id, turn, 0, 0, 0, has_call), session)
    try:
        lengths = (
            len(prompts.student_ids(record)),
            len(prompts.teacher_ids(record)),
            len(prompts.reference_ids(record)),
        )
    except TemplateError as error:
        return Rejection(name, session.session_id, turn, Reason.TEMPLATE_ERROR, str(error))
    reason = length_reason(config, lengths[1], lengths[2])
    if reason:
        return Rejection(name, session.session_id, turn, reason, "", *lengths)
    return RecordRow(name, session.session_id, turn, *lengths, has_call)


def _turns(
    session: Session, reasoning_only: set[int], prompts: ChatPrompts, config: PrepareConfig
) -> list[RecordRow | Rejection]:
    found: list[RecordRow | Rejection] = []
    for turn in session.assistant_turns():
        reason = content_reason(session, turn, turn in reasoning_only)
        if reason:
            found.append(Rejection(record_id_of(session.session_id, turn), session.session_id, turn, reason))
        else:
            found.append(_measure(session, turn, prompts, config))
    prompts.encoder.forget()
    return found


def prepare(
    config: PrepareConfig, source: Source, prompts: ChatPrompts, progress: Progress = lambda what, done, total: None
) -> Prepared:
    """Read a source and turn its sessions into records; see `read` and `measure`."""
    return measure(config, source, read(config, source, progress), prompts, progress)


def read(config: PrepareConfig, source: Source, progress: Progress = lambda what, done, total: None) -> FileSessions:
    """Read the sessions of a source; raises `DataError` if there are none."""
    done = iter(range(len(source.files)))
    found = read_source(source, config.limit_sessions, lambda path: progress("Reading", next(done), len(source.files)))
    progress("Reading", len(source.files), len(source.files))
    return found


def measure(
    config: PrepareConfig,
    source: Source,
    found: FileSessions,
    prompts: ChatPrompts,
    progress: Progress = lambda what, done, total: None,
) -> Prepared:
    """Turn sessions into records.

    Every assistant turn of every session becomes a record or a rejection with a reason.

    Raises:
        DataError: no turn can be kept.
    """
    funnel = Funnel()
    sessions = with_tools(found.sessions, every_builtin=config.tools == "all")
    kept_sessions: list[Session] = []
    rows: list[RecordRow] = []
    rejected: list[Rejection] = list(found.report.lost_turns)
    for number, session in enumerate(sessions):
        progress("Measuring", number, len(sessions))
        session, reasoning_only = strip_session(session, funnel.notes)
        kept_sessions.append(session)
        for outcome in _turns(session, reasoning_only, prompts, config):
            (rows if isinstance(outcome, RecordRow) else rejected).append(outcome)  # type: ignore[arg-type]
    progress("Measuring", len(sessions), len(sessions))
    group_of = {s.session_id: s.group for s in kept_sessions}
    held_out = validation_groups((group_of[r.session_id] for r in rows), config.validation_fraction, config.seed)
    funnel.sessions = len(sessions)
    funnel.turns = len(found.report.lost_turns) + sum(len(s.assistant_turns()) for s in kept_sessions)
    funnel.rejected.update(str(r.reason) for r in rejected)
    funnel.validation = sum(group_of[r.session_id] in held_out for r in rows)
    funnel.train = len(rows) - funnel.validation
    funnel.validation_sessions = sum(s.group in held_out for s in kept_sessions)
    funnel.notes.update(found.report.notes)
    funnel.notes["files_ignored"] += len(source.ignored)
    funnel.lines.update(found.report.lines)
    funnel.check()
    if not rows:
        reasons = ", ".join(f"{reason} {count}" for reason, count in funnel.rejected.most_common())
        raise DataError(f"No turn of {source.name} can be kept ({reasons}): raise the cap that is named.")
    return Prepared(kept_sessions, rows, rejected, held_out, funnel, found.report)


def manifest_of(config: PrepareConfig, source: Source, prompts: ChatPrompts, prepared: Prepared) -> dict[str, Any]:
    """Return the manifest: all that is needed to make the dataset again. It holds no time and no local path."""
    settings = config.model_dump(mode="json", exclude={"source", "revision"})
    settings["model"] = Path(config.model).name if Path(config.model).exists() else config.model
    return {
        "sdft_version": __version__,
        "source": source.describe(),
        "config": settings,
        "fingerprint": prompts.fingerprint(),
        "exact_piece_encoding": prompts.encoder.exact_pieces,
        "teacher_template": prompts.teacher.name,
        "funnel": prepared.funnel.as_dict(),
        "broken_lines": prepared.report.broken,
    }


def write(prepared: Prepared, manifest: dict[str, Any], out: Path, card: str, overwrite: bool = False) -> Path:
    """Write the dataset folder, all of it or nothing; raises what `write_dataset` raises."""
    group_of = {s.session_id: s.group for s in prepared.sessions}
    splits: dict[str, list[RecordRow]] = {"train": [], "validation": []}
    for row in prepared.rows:
        splits["validation" if group_of[row.session_id] in prepared.held_out else "train"].append(row)
    return write_dataset(out, prepared.sessions, splits, prepared.rejected, manifest, {"README.md": card}, overwrite)
