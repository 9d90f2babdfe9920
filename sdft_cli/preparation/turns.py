"""One session -> its turns: each a record or a rejection. What a worker process runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from sdft_cli.config import PrepareConfig
from sdft_cli.preparation.coverage import Turn, Usage
from sdft_cli.preparation.duplicates import turn_hashes, turn_sketch
from sdft_cli.preparation.parallel import split_parallel
from sdft_cli.preparation.reasoning import strip_session
from sdft_cli.preparation.system import system_tokens, without
from sdft_cli.prompts.chat import UnreadableCall
from sdft_cli.prompts.incremental import SessionCounter, TokenCounter
from sdft_cli.prompts.template import TemplateError
from sdft_cli.prompts.unsaid import TemplateLoses
from sdft_cli.records import RecordRow, Rejection, Session
from sdft_cli.records.reasons import (
    CONTEXT_INCOMPLETE,
    REASON_OF_CAP,
    TEMPLATE_ERROR,
    TEMPLATE_LOSES,
    UNREADABLE_CALL,
    Candidate,
    Reason,
    first_reason,
)
from sdft_cli.records.types import record_id_of

Revealed = dict[bytes, tuple[str, bytes]]
"""What sessions give away, as `Redact.revealed` returns it."""


class Redact(Protocol):
    """What takes secrets out: a `redaction.redactor.Redactor`."""

    def text(self, text: str, counts: Counter[str], /) -> str: ...
    def revealed(self, session: Session, /) -> Revealed: ...
    def session(self, session: Session, counts: Counter[str], revealed: Revealed | None, /) -> Session: ...


@dataclass(frozen=True)
class SessionTurns:
    """A session as it will be stored, the fate of each of its assistant turns, and what is needed to find copies.

    `hashes` and `sketches` are by turn index; sketches only of records. `counts` are the notes, `redacted` the
    replacements by kind; `in_full` says that its turns were rendered and encoded one by one. `system_tokens`: of the
    system prompt that the session begins with, or began with before it was dropped; None: it has none. `usage`: the
    turns of which both counts are known.
    """

    session: Session
    outcomes: list[RecordRow | Rejection]
    hashes: dict[int, str]
    sketches: dict[int, tuple[int, ...]]
    in_full: bool
    counts: Counter[str] = field(default_factory=Counter)
    redacted: Counter[str] = field(default_factory=Counter)
    system_tokens: int | None = None
    usage: Usage = field(default_factory=lambda: Usage("", ()))

    def refusing(self, lacking: Mapping[int, int]) -> SessionTurns:
        """Return the same with the records of some turns rejected: turn index -> tokens that it lacks (or has over)."""
        outcomes = [
            CONTEXT_INCOMPLETE.rejection(o, _detail(lacking[o.turn_index]))
            if isinstance(o, RecordRow) and o.turn_index in lacking
            else o
            for o in self.outcomes
        ]
        return replace(self, outcomes=outcomes)


def _detail(tokens: int) -> str:
    if tokens < 0:
        return f"the model saw about {-tokens:,} tokens less than the session holds"
    return f"the model saw about {tokens:,} tokens that the session does not hold"


def _take_usage(session: Session) -> tuple[Session, dict[int, int]]:
    """Return the session without the provider's token counts, and these by turn."""
    seen = {i: m.seen_tokens for i in session.assistant_turns() if (m := session.messages[i]).seen_tokens is not None}
    messages = tuple(m if m.seen_tokens is None else replace(m, seen_tokens=None) for m in session.messages)
    return (replace(session, messages=messages) if seen else session), seen


def _usage(session: Session, seen: Mapping[int, int], outcomes: list[RecordRow | Rejection], dropped: int) -> Usage:
    ours = {o.turn_index: o.prompt_tokens for o in outcomes if o.prompt_tokens is not None}
    turns = [Turn(index, tokens, own) for index, tokens in seen.items() if (own := ours.get(index)) is not None]
    agent, continued = bool(session.metadata.get("agent")), bool(session.metadata.get("compacted"))
    return Usage(session.session_id, turns, dropped, agent, continued)


def _row(counted: SessionCounter, turn: int) -> RecordRow:
    session, lengths = counted.session, counted.lengths(turn)
    name, has_call = record_id_of(session.session_id, turn), bool(session.messages[turn].tool_calls)
    return RecordRow(name, session.session_id, turn, lengths.student, lengths.teacher, lengths.reference, has_call)


def _outcome(
    counted: SessionCounter, turn: int, reasoning_only: bool, caps: Mapping[str, int]
) -> RecordRow | Rejection:
    """Keep one turn, or reject it for the first reason that holds."""
    session = counted.session
    candidate = Candidate(session, turn, reasoning_only, caps, lambda: _row(counted, turn))
    name = record_id_of(session.session_id, turn)
    try:
        reason = first_reason(candidate)
        if reason is None:
            counted.prompts.check_calls(candidate.message, session.tools)
            return candidate.row
    except TemplateError as error:
        return Rejection(name, session.session_id, turn, _refused_as(error).key, str(error))
    return reason.rejection(candidate.row) if reason.cap else Rejection(name, session.session_id, turn, reason.key)


def _refused_as(error: TemplateError) -> Reason:
    kinds = {TemplateLoses: TEMPLATE_LOSES, UnreadableCall: UNREADABLE_CALL}
    return next((reason for kind, reason in kinds.items() if isinstance(error, kind)), TEMPLATE_ERROR)


def _outcomes(
    counted: SessionCounter, reasoning_only: set[int], config: PrepareConfig
) -> tuple[list[RecordRow | Rejection], int | None]:
    """Return the outcome of each turn, and the last turn whose tokens were counted."""
    caps = {name: int(getattr(config, name)) for name in REASON_OF_CAP}
    outcomes = [_outcome(counted, turn, turn in reasoning_only, caps) for turn in counted.session.assistant_turns()]
    known = [o.turn_index for o in outcomes if isinstance(o, RecordRow) or o.prompt_tokens is not None]
    return outcomes, known[-1] if known else None


def turns_of(
    session: Session,
    counter: TokenCounter,
    config: PrepareConfig,
    redact: Redact | None,
    revealed: Revealed | None = None,
) -> SessionTurns:
    """Strip and redact one session, and count the tokens of its turns.

    `revealed`: what the sessions of its group give away; None: it is alone in it, and searched here. The last counted
    turn is compared with its full rendering; if it differs, all turns are rendered in full.
    """
    counts, redacted = Counter[str](), Counter[str]()
    if redact is not None and revealed is None:
        revealed = redact.revealed(session)  # with its reasoning, which may say what a secret is
    dropped = system_tokens(counter.prompts, session) if config.system_prompt == "none" else None
    if config.parallel_calls == "split":
        session = split_parallel(session, counts)
    session, seen = _take_usage(without(session) if config.system_prompt == "none" else session)
    session, reasoning_only = strip_session(session, counts)
    if redact is not None:
        session = redact.session(session, redacted, revealed)
    system = system_tokens(counter.prompts, session) if dropped is None else dropped
    counted = counter.session(session)
    outcomes, last = _outcomes(counted, reasoning_only, config)
    if last is not None and not counted.holds_at(last):
        counted = counter.session(session, in_full=True)
        outcomes, _ = _outcomes(counted, reasoning_only, config)
    counter.prompts.encoder.forget()
    kept = [o.turn_index for o in outcomes if isinstance(o, RecordRow)]
    return SessionTurns(
        session,
        outcomes,
        turn_hashes(session),
        {turn: turn_sketch(session, turn) for turn in kept},
        counted.in_full,
        counts,
        redacted,
        system,
        _usage(session, seen, outcomes, dropped or 0),
    )
