"""`sdft prepare` as a function: source -> sessions -> turns -> records, with everything counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdft_cli import __version__
from sdft_cli.config import PrepareConfig
from sdft_cli.errors import DataError
from sdft_cli.preparation.coverage import Coverage, coverages, summary
from sdft_cli.preparation.gathered import choose, gather
from sdft_cli.preparation.job import Job
from sdft_cli.preparation.split import split_keys, validation_groups
from sdft_cli.preparation.system import system_summary
from sdft_cli.preparation.turns import Redact
from sdft_cli.preparation.workers import OnProgress, map_sessions
from sdft_cli.prompts.chat import ChatPrompts, template_facts
from sdft_cli.records import RecordRow, Rejection, Session, write_dataset
from sdft_cli.records.on_disk import Changed, OnDisk
from sdft_cli.records.reasons import REASON_OF_CAP, TEMPLATE_ERROR, TEMPLATE_LOSES, UNREADABLE_CALL, advice_of
from sdft_cli.traces.source import Source, read_source
from sdft_cli.traces.tools import OfferedTools
from sdft_cli.traces.types import FileSessions, ReadReport


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
    """The result before it is written; what grows with the text or the records lies on disk.

    `held_out` are the sessions of validation; `near` the validation records that a training record nearly repeats;
    `redacted` the replacements by kind, None if redaction was off; `local_template` says whether counts were sums.
    `coverage` is of each session with usage; `system_tokens` of each session that began with a system prompt, by id.
    """

    sessions: Sequence[Session]
    rows: Sequence[RecordRow]
    rejected: Sequence[Rejection]
    held_out: set[str]
    near: Sequence[tuple[str, str, float]]
    redacted: Counter[str] | None
    local_template: bool
    funnel: Funnel
    report: ReadReport
    coverage: Sequence[Coverage] = ()
    system_tokens: Mapping[str, int] = field(default_factory=dict)
    redact: Redact | None = None
    """Redacts what the manifest says beside the sessions."""


def prepare(source: Source, job: Job) -> Prepared:
    """Read a source and turn its sessions into records, silently; see `read` and `make_records`."""
    silent: OnProgress = lambda what, done, total: None  # noqa: E731
    return make_records(source, read(job.config, source, silent), job, silent)


def read(config: PrepareConfig, source: Source, progress: OnProgress) -> FileSessions:
    """Read the sessions of a source; raises `DataError` if there are none."""
    total = len(source.files)
    done = iter(range(total))
    sessions = read_source(
        source,
        config.limit_sessions,
        lambda path: progress("Reading", next(done), total),
        every_branch=config.branches == "all",
    )
    progress("Reading", total, total)
    return sessions


def _nothing_kept(source: Source, rejected: Sequence[Rejection]) -> DataError:
    counts = Counter(r.reason for r in rejected).most_common()
    reasons = ", ".join(f"{reason} {count}" for reason, count in counts)
    most = counts[0][0] if counts else ""
    said = next((f" {text}" for text, _ in refusals(rejected)), "") if most in REFUSALS else ""
    return DataError(f"No turn of {source.name} can be kept ({reasons}):{said} {advice_of(most)}.")


REFUSALS = (TEMPLATE_ERROR.key, TEMPLATE_LOSES.key, UNREADABLE_CALL.key)
REFUSALS_LISTED, REFUSAL_CHARACTERS = 5, 300


def refusals(rejected: Sequence[Rejection]) -> list[tuple[str, int]]:
    """Return the chat template's own sentences about the turns that it refuses or drops, the most frequent first."""
    found = Counter(r.detail[:REFUSAL_CHARACTERS] for r in rejected if r.reason in REFUSALS)
    return sorted(found.items(), key=lambda item: (-item[1], item[0]))[:REFUSALS_LISTED]


def make_records(source: Source, read_sessions: FileSessions, job: Job, progress: OnProgress) -> Prepared:
    """Make a record or a rejection of every assistant turn; raises `DataError` if no turn can be kept."""
    config, report, sessions = job.config, read_sessions.report, read_sessions.sessions
    tools = OfferedTools(sessions, every_builtin=config.tools == "all")
    offered = Changed(sessions, lambda _, session: tools.given_to(session))
    with closing(map_sessions(job, offered, progress)) as results:  # an interrupt stops workers at once
        found = gather(results)
    coverage = OnDisk(coverages(found.usages, config.max_unseen_tokens))
    refused = {c.session_id: c.refused for c in coverage if c.refused}
    chosen = choose(found, refused, report.lost_turns)
    keys = split_keys(found.heads, config.split_by)
    held_out = validation_groups((keys[r.session_id] for r in chosen.rows), config.validation_fraction, config.seed)
    held_out_sessions = {s.session_id for s in found.heads if keys[s.session_id] in held_out}
    near = chosen.near_copies(held_out_sessions)

    validation = sum(r.session_id in held_out_sessions for r in chosen.rows)
    funnel = Funnel(
        sessions=len(found.heads),
        turns=len(report.lost_turns) + found.turns,
        rejected=Counter(str(r.reason) for r in chosen.rejected),
        train=len(chosen.rows) - validation,
        validation=validation,
        validation_sessions=len(held_out_sessions),
        notes=report.notes + found.notes,
        lines=report.lines,
    )
    funnel.notes["files_ignored"] += len(source.ignored)
    funnel.notes["sessions_rendered_turn_by_turn"] += found.in_full
    funnel.notes["near_copies_across_split"] += len(near)
    funnel.notes["context_gaps"] += sum(len(c.off) for c in coverage)
    funnel.notes["silent_compactions"] += sum(c.drops for c in coverage)
    funnel.check()
    if not chosen.rows:
        raise _nothing_kept(source, chosen.rejected)
    return Prepared(
        found.sessions,
        chosen.rows,
        chosen.rejected,
        held_out_sessions,
        near,
        found.redacted if job.redact is not None else None,
        job.counter.local,
        funnel,
        report,
        coverage,
        found.system_tokens,
        job.redact,
    )


def manifest_of(config: PrepareConfig, source: Source, prompts: ChatPrompts, prepared: Prepared) -> dict[str, Any]:
    """Return the manifest: all that is needed to make the dataset again. It holds no time and no local path."""
    settings = config.model_dump(mode="json", exclude={"source", "revision", "workers", "engine", "ray_address"})
    settings["model"] = Path(config.model).name if Path(config.model).exists() else config.model
    for file in ("chat_template", "teacher_template"):
        if settings[file] is not None:
            settings[file] = Path(settings[file]).name
    counts = Counter(prepared.redacted or {})
    public = _public(prepared.redact, counts)
    described, unknown = source.describe(), _unknown(prepared.report.unknown, public)
    if source.kind != "hub":
        described["name"] = public(described["name"])
    broken = [public(line) for line in prepared.report.broken]
    return {
        "sdft_version": __version__,
        "source": described,
        "config": settings,
        "fingerprint": prompts.fingerprint(),
        "exact_piece_encoding": prompts.encoder.exact_pieces,
        "local_template": prepared.local_template,
        "teacher_template": prompts.teacher.name,
        "teacher_text": prompts.teacher.text,
        **template_facts(prompts),
        "funnel": prepared.funnel.as_dict(),
        "redaction": {"enabled": prepared.redacted is not None, "counts": dict(sorted(counts.items()))},
        "near_copies": [list(pair) for pair in prepared.near[:NEAR_COPIES_LISTED]],
        "refusals": [list(pair) for pair in refusals(prepared.rejected)],
        "broken_lines": broken,
        "coverage": summary(prepared.coverage),
        "system_prompt": _system_summary(config, prepared),
        "unknown": unknown,
    }


def _public(redact: Redact | None, counts: Counter[str]) -> Callable[[str], str]:
    """Return what redacts a name that comes from a path or a file, and counts that."""
    return (lambda name: redact.text(name, counts)) if redact is not None else str


def _system_summary(config: PrepareConfig, prepared: Prepared) -> dict[str, Any] | None:
    caps = {name: int(getattr(config, name)) for name in REASON_OF_CAP}
    return system_summary(prepared.system_tokens, prepared.rejected, caps, config.system_prompt == "none")


def _unknown(found: Counter[str], public: Callable[[str], str] = str) -> dict[str, Any]:
    """Return what the reader was not tested with: how many kinds and times, and the most frequent ones."""
    named = Counter[str]()
    for name, count in found.items():
        named["".join(c if c.isprintable() else "?" for c in public(name)[:UNKNOWN_CHARACTERS])] += count
    most = sorted(named.items(), key=lambda item: (-item[1], item[0]))[:UNKNOWN_LISTED]
    return {"kinds": len(named), "times": sum(named.values()), "named": [list(pair) for pair in most]}


NEAR_COPIES_LISTED = 100
"""The manifest names so many of them; the funnel counts all."""
UNKNOWN_LISTED, UNKNOWN_CHARACTERS = 50, 80
"""The same of what the reader was not tested with; names come from the files, and may be long."""


def write(prepared: Prepared, manifest: dict[str, Any], out: Path, card: str, overwrite: bool = False) -> Path:
    """Write the dataset folder, all of it or nothing; raises what `write_dataset` raises."""
    held_out = prepared.held_out
    splits = {
        "train": (row for row in prepared.rows if row.session_id not in held_out),
        "validation": (row for row in prepared.rows if row.session_id in held_out),
    }
    return write_dataset(out, prepared.sessions, splits, prepared.rejected, manifest, {"README.md": card}, overwrite)
