"""One session -> its turns: each a record or a rejection. What a worker process runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from sdft_cli.config import PrepareConfig
from sdft_cli.prepare.duplicates import turn_hashes, turn_sketch
from sdft_cli.prepare.filters import Reason, content_reason, length_reason
from sdft_cli.prepare.reasoning import strip_session
from sdft_cli.prompts.chat import TemplateError
from sdft_cli.prompts.incremental import Measurer, SessionMeasure
from sdft_cli.records import RecordRow, Rejection, Session
from sdft_cli.records.types import record_id_of

Redact = Callable[[Session, Counter[str]], Session]


@dataclass(frozen=True)
class SessionTurns:
    """A session as it will be stored, the fate of each of its assistant turns, and what is needed to find copies.

    `hashes` and `sketches` are by turn index; sketches only of records. `counts` are the notes, `redacted` the
    replacements by kind; `in_full` says that its turns were rendered and encoded one by one.
    """

    session: Session
    outcomes: list[RecordRow | Rejection]
    hashes: dict[int, str]
    sketches: dict[int, tuple[int, ...]]
    in_full: bool
    counts: Counter[str] = field(default_factory=Counter)
    redacted: Counter[str] = field(default_factory=Counter)


def _outcome(measure: SessionMeasure, turn: int, reasoning_only: bool, config: PrepareConfig) -> RecordRow | Rejection:
    """Keep one turn, or reject it by what it says or by the cap that it breaks."""
    session = measure.session
    name = record_id_of(session.session_id, turn)
    reason = content_reason(session, turn, reasoning_only)
    if reason:
        return Rejection(name, session.session_id, turn, reason)
    try:
        found = measure.lengths(turn)
    except TemplateError as error:
        return Rejection(name, session.session_id, turn, Reason.TEMPLATE_ERROR, str(error))
    lengths = (found.student, found.teacher, found.reference)
    over = length_reason(config, found.teacher, found.reference)
    if over:
        return Rejection(name, session.session_id, turn, over, "", *lengths)
    return RecordRow(name, session.session_id, turn, *lengths, bool(session.messages[turn].tool_calls))


def _outcomes(
    measure: SessionMeasure, reasoning_only: set[int], config: PrepareConfig
) -> tuple[list[RecordRow | Rejection], int | None]:
    """Return the outcome of each turn, and the last turn that was measured."""
    found = [_outcome(measure, turn, turn in reasoning_only, config) for turn in measure.session.assistant_turns()]
    measured = [o.turn_index for o in found if isinstance(o, RecordRow) or o.prompt_tokens is not None]
    return found, measured[-1] if measured else None


def turns_of(session: Session, measurer: Measurer, config: PrepareConfig, redact: Redact | None) -> SessionTurns:
    """Strip, redact and measure one session.

    The last measured turn is compared with its full rendering; if it differs, all turns are measured in full.
    """
    counts, redacted = Counter[str](), Counter[str]()
    session, reasoning_only = strip_session(session, counts)
    if redact is not None:
        session = redact(session, redacted)
    measure = measurer.session(session)
    outcomes, last = _outcomes(measure, reasoning_only, config)
    if last is not None and not measure.holds_at(last):
        measure = measurer.session_in_full(session)
        outcomes, _ = _outcomes(measure, reasoning_only, config)
    measurer.prompts.encoder.forget()
    kept = [o.turn_index for o in outcomes if isinstance(o, RecordRow)]
    return SessionTurns(
        session,
        outcomes,
        turn_hashes(session),
        {turn: turn_sketch(session, turn) for turn in kept},
        measure.in_full,
        counts,
        redacted,
    )
