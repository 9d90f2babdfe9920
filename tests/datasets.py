"""Datasets for tests: real session text, made-up lengths, no tokenizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdft_cli.records import Dataset, RecordRow, Rejection, Session, read_dataset, write_dataset
from sdft_cli.records.types import record_id_of
from sdft_cli.traces.examples import write_examples
from sdft_cli.traces.source import read_source, resolve_source
from sdft_cli.traces.tools import OfferedTools


def row(session: Session, turn: int, prompt: int = 10, teacher: int = 20, reference: int = 5) -> RecordRow:
    name = record_id_of(session.session_id, turn)
    has_call = bool(session.messages[turn].tool_calls)
    return RecordRow(name, session.session_id, turn, prompt, teacher, reference, has_call)


def manifest_of(
    train: int, validation: int = 0, rejected: Sequence[Rejection] = (), source: str = "x", **more: Any
) -> dict[str, Any]:
    return {
        "sdft_version": "0",
        "source": {"name": source, "kind": "folder", "revision": None},
        "config": {"model": "m", "max_prompt_tokens": 100, "max_rollout_tokens": 40, "max_seq_tokens": 120},
        "funnel": {
            "sessions": 1,
            "turns": train + validation + len(rejected),
            "kept": train + validation,
            "train": train,
            "validation": validation,
            "validation_sessions": int(validation > 0),
            "rejected": dict(Counter(str(r.reason) for r in rejected)),
        },
        **more,
    }


def store(
    folder: Path,
    sessions: Sequence[Session],
    train: Sequence[RecordRow],
    validation: Sequence[RecordRow] = (),
    rejected: Sequence[Rejection] = (),
    **manifest: Any,
) -> Dataset:
    document = manifest_of(len(train), len(validation), rejected, **manifest)
    splits = {"train": train, "validation": validation}
    return read_dataset(write_dataset(folder, sessions, splits, rejected, document))


def example_dataset(folder: Path, sessions: int = 24) -> Dataset:
    """Every assistant turn of the example sessions is a record; the last session is held out."""
    write_examples(folder / "sessions", sessions)
    found = with_tools(read_source(resolve_source(str(folder / "sessions"))).sessions, every_builtin=False)
    rows = [[row(session, turn) for turn in session.assistant_turns()] for session in found]
    return store(folder / "data", found, [r for some in rows[:-1] for r in some], rows[-1])


def with_tools(sessions: Sequence[Session], every_builtin: bool = False) -> list[Session]:
    """Give each session the tools that `sdft prepare` offers it."""
    offered = OfferedTools(sessions, every_builtin)
    return [offered.given_to(session) for session in sessions]
