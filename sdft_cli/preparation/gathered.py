"""All sessions of a source after each was measured alone: on disk, but for what takes a few bytes per turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sdft_cli.preparation.coverage import Usage
from sdft_cli.preparation.duplicates import Sketched, first_of_each, joined_groups, near_copies, record_key, tools_hash
from sdft_cli.preparation.turns import SessionTurns
from sdft_cli.records import RecordRow, Rejection, Session
from sdft_cli.records.on_disk import Changed, OnDisk
from sdft_cli.records.reasons import DUPLICATE


@dataclass
class Gathered:
    """What was measured. `heads`: the sessions without messages and tools, which are in memory; by `group`, joined.

    `usages` holds those of the sessions that have any; the others are sums over the sessions, as in `SessionTurns`.
    """

    sessions: Sequence[Session]
    heads: list[Session]
    usages: Sequence[Usage]
    turns: int = 0
    in_full: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    redacted: Counter[str] = field(default_factory=Counter)
    system_tokens: dict[str, int] = field(default_factory=dict)
    measured: Sequence[SessionTurns] = ()
    """Their sessions have no messages; their usage is in `usages`."""
    tools: list[bytes] = field(default_factory=list)


def gather(results: Iterable[SessionTurns]) -> Gathered:
    """Take what comes out of `map_sessions`, session by session, and join the groups."""
    sessions, usages, measured = OnDisk[Session](), OnDisk[Usage](), OnDisk[SessionTurns]()
    found = Gathered(sessions, [], usages, measured=measured)
    firsts: list[str | None] = []
    tools: dict[bytes, bytes] = {}
    for turns in results:
        session = turns.session
        head = replace(session, messages=(), tools=())
        sessions.append(session)
        found.heads.append(head)
        if turns.usage.turns:
            usages.append(turns.usage)
        measured.append(replace(turns, session=head, usage=Usage("", ())))
        found.turns += len(session.assistant_turns())
        found.in_full += turns.in_full
        found.notes.update(turns.counts)
        found.redacted.update(turns.redacted)
        if turns.system_tokens is not None:
            found.system_tokens[session.session_id] = turns.system_tokens
        firsts.append(next(iter(turns.hashes.values()), None))
        digest = tools_hash(session)
        found.tools.append(tools.setdefault(digest, digest))
    groups = joined_groups((head.group, first) for head, first in zip(found.heads, firsts, strict=True))
    found.heads = [replace(head, group=group) for head, group in zip(found.heads, groups, strict=True)]
    found.sessions = Changed(sessions, lambda i, session: replace(session, group=groups[i]))
    return found


@dataclass(frozen=True)
class Chosen:
    """The records, each once, with their sketches; and every rejection."""

    rows: OnDisk[RecordRow]
    sketches: OnDisk[tuple[int, ...]]
    rejected: OnDisk[Rejection]

    def near_copies(self, held_out: set[str]) -> list[tuple[str, str, float]]:
        """Return the records of the sessions held out that another one nearly repeats, as `near_copies` does."""

        def sketched(validation: bool) -> Iterator[Sketched]:
            for row, sketch in zip(self.rows, self.sketches, strict=True):
                if (row.session_id in held_out) == validation:
                    yield row.record_id, sketch

        return near_copies(sketched(False), sketched(True))


def choose(found: Gathered, refused: Mapping[str, Mapping[int, int]], lost: Sequence[Rejection]) -> Chosen:
    """Make a record of each turn that is none of `refused` (see `SessionTurns.refusing`) and no copy.

    Rejections stand in this order: those that were `lost` while reading, those of the sessions, and the copies.
    """
    chosen = Chosen(OnDisk(), OnDisk(), OnDisk(lost))
    candidates, keys = OnDisk[tuple[RecordRow, tuple[int, ...]]](), bytearray()
    for turns, tools in zip(found.measured, found.tools, strict=True):
        for outcome in turns.refusing(refused.get(turns.session.session_id, {})).outcomes:
            if isinstance(outcome, Rejection):
                chosen.rejected.append(outcome)
            else:
                candidates.append((outcome, turns.sketches[outcome.turn_index]))
                keys += record_key(tools, turns.hashes[outcome.turn_index])
    firsts = first_of_each(bytes(keys))
    for place, (row, sketch) in enumerate(candidates):
        first = int(firsts[place])
        if first == place:
            chosen.rows.append(row)
            chosen.sketches.append(sketch)
        else:
            chosen.rejected.append(DUPLICATE.rejection(row, f"the same as {candidates[first][0].record_id}"))
    return chosen
