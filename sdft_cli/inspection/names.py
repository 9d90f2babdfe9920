"""From a name, or the beginning of one, to a session, a turn, or a turn that was dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from os.path import commonprefix

from sdft_cli.errors import UsageError, nearest
from sdft_cli.notices import some
from sdft_cli.records.lazy import SPLITS, LazyDataset
from sdft_cli.records.types import RecordRow, Rejection
from sdft_cli.report.visible import visible

SHORTEST = 8
"""Names are shown with at least so many characters."""


@dataclass(frozen=True)
class Fate:
    """What became of an assistant's turn: a record of a split, or a rejection."""

    split: str | None
    row: RecordRow | Rejection

    @property
    def dropped(self) -> Rejection | None:
        return self.row if isinstance(self.row, Rejection) else None


@dataclass(frozen=True)
class Found:
    """A session (`fate` is None), or one of its turns."""

    session_id: str
    fate: Fate | None = None


def fates(data: LazyDataset, session_id: str) -> list[Fate]:
    """Return what became of every turn of a session, in its order; turns in no conversation come last."""
    found = [Fate(split, row) for split in SPLITS for row in data.records(split, session_id)]
    found += [Fate(None, row) for row in data.rejected(session_id)]
    return sorted(found, key=lambda fate: (fate.row.turn_index is None, fate.row.turn_index or 0))


def find(data: LazyDataset, name: str) -> Found:
    """Return what is named: `session`, `session/turn`, or the beginning of the session's name.

    Raises:
        UsageError: nothing has this name, or several have.
    """
    ids = data.session_ids
    if name in ids:
        return Found(name)
    before, slash, turn = name.rpartition("/")
    if slash and turn.isascii() and turn.isdecimal() and (session := _one(before, ids)):
        return _turn(data, session, int(turn))
    if session := _one(name, ids):
        return Found(session)
    dropped = [row for row in data.rejected() if row.turn_index is None and row.record_id.startswith(name)]
    if len(dropped) == 1:
        return Found(dropped[0].session_id, Fate(None, dropped[0]))
    shown = visible(name)
    if dropped:
        names = some([visible(row.record_id) for row in dropped])
        raise UsageError(f"{shown} begins the names of {len(dropped)} turns ({names}): write more of it.")
    otherwise = f"`sdft inspect {visible(str(data.path))}` lists the sessions."
    asked = before if slash and turn.isdecimal() else name.rstrip("/")
    begins = {one[: len(asked)]: one for one in reversed(ids)}  # a beginning of a name is alike to other beginnings
    meant = [begins.get(one, one) for one in nearest(asked, [*begins, *ids])]
    near = f"did you mean {' or '.join(visible(one) for one in dict.fromkeys(meant))}?" if meant else otherwise
    raise UsageError(f"The dataset has no session or record {shown}: {near}")


def _one(name: str, ids: Sequence[str]) -> str | None:
    """Return the session of this name, or the only one whose name begins so; None if none does."""
    if name in ids:
        return name
    found = [one for one in ids if one.startswith(name)]
    if len(found) > 1:
        names = some([visible(one) for one in found])
        raise UsageError(
            f"{visible(name) or '/'} begins the names of {len(found)} sessions ({names}): write more of it."
        )
    return found[0] if found else None


def _turn(data: LazyDataset, session_id: str, turn: int) -> Found:
    """Return a turn of a session; raises `UsageError` if the message is no candidate for a record."""
    known = fates(data, session_id)
    for fate in known:
        if fate.row.turn_index == turn:
            return Found(session_id, fate)
    turns = [fate.row.turn_index for fate in known if fate.row.turn_index is not None]
    near = sorted(sorted(turns, key=lambda other: abs(other - turn))[:2])
    meant = f"did you mean {' or '.join(f'{visible(session_id)}/{n}' for n in near)}?" if near else "it has none."
    raise UsageError(f"Message {turn} of session {visible(session_id)} is no turn of the dataset: {meant}")


def short_names(ids: Sequence[str]) -> dict[str, str]:
    """Return the shortest beginning of each name that names no other, of `SHORTEST` characters at least."""
    ordered = sorted(set(ids))
    longest = dict.fromkeys(ordered, 0)
    for one, other in pairwise(ordered):
        shared = len(commonprefix([one, other]))  # noqa: RUF071  # names, not paths
        longest[one], longest[other] = max(longest[one], shared), max(longest[other], shared)
    ends = {one: max(SHORTEST, longest[one] + 1) for one in ordered}
    return {one: one if len(one) <= end + 3 else one[:end] for one, end in ends.items()}
