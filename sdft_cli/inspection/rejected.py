"""The turns that were dropped, and why: by reason, then one by one, with how each begins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from sdft_cli.errors import UsageError, did_you_mean
from sdft_cli.inspection.names import short_names
from sdft_cli.inspection.screen import Screen
from sdft_cli.inspection.timeline import lengths
from sdft_cli.records.lazy import LazyDataset
from sdft_cli.records.reasons import REASONS, advice_of, meaning_of
from sdft_cli.records.types import Rejection
from sdft_cli.report.visible import folded, in_short, visible

BEGINNING = 400
"""So many characters of a dropped turn are read."""


@dataclass(frozen=True)
class Dropped:
    """A dropped turn, and how it begins ("" for one that is in no message)."""

    row: Rejection
    begins: str


class RejectedList:
    """The dropped turns of a dataset, of one session, or of one reason; so many at most."""

    def __init__(
        self,
        data: LazyDataset,
        session_id: str | None = None,
        reason: str | None = None,
        only: set[str] | None = None,
        limit: int | None = None,
    ) -> None:
        """Read the table.

        Args:
            only: these sessions; None: all.

        Raises:
            UsageError: there is no such reason.
        """
        rows = [row for row in data.rejected(session_id) if only is None or row.session_id in only]
        self.counts = Counter(row.reason for row in rows)
        if reason is not None and reason not in {*REASONS, *self.counts}:
            near = did_you_mean(reason, [*REASONS, *self.counts], f"choose of {', '.join(self.counts)}.")
            raise UsageError(f"{visible(reason)} is no reason: {near}")
        order = {name: place for place, name in enumerate(data.session_ids)}
        rows = [row for row in rows if reason in (None, row.reason)]
        rows.sort(key=lambda row: (order.get(row.session_id, len(order)), row.turn_index is None, row.turn_index or 0))
        self.found = len(rows)
        self.data, self.rows, self.reason = data, rows[:limit], reason

    def dropped(self) -> Iterator[Dropped]:
        """Return the turns in the order of the sessions, reading a row group of these at a time."""
        by_session: dict[str, list[Rejection]] = {}
        for row in self.rows:
            by_session.setdefault(row.session_id, []).append(row)
        for group in self.data.groups(("content", "tool_calls.name"), set(by_session)) if by_session else ():
            texts, lists = group.of("content"), group.of("tool_calls")
            for place, name in enumerate(group.ids):
                start, stop = group.starts[place], group.starts[place + 1]
                for row in by_session.pop(name, ()):
                    index = None if row.turn_index is None else start + row.turn_index
                    if index is None or not start <= index < stop:
                        yield Dropped(row, "")
                        continue
                    text = texts[index].as_py()[:BEGINNING].strip()
                    calls = " ".join(f"-> {call['name']}" for call in lists[index].as_py())
                    yield Dropped(row, f"{text} {calls}".strip())
        for without in by_session.values():  # their sessions are not in the dataset
            yield from (Dropped(row, "") for row in without)

    def lines(self, screen: Screen) -> Iterator[str]:
        total = self.counts.total()
        yield f"{visible(str(self.data.path))}: {total:,} dropped turn(s), by reason:"
        for reason, count in self.counts.most_common():
            told = f"{in_short(reason, 60)}: {meaning_of(reason) or 'not known to this version'}; {advice_of(reason)}"
            head, *others = folded(told, screen.width - 10)
            yield f"{count:>8,}  {head}"
            yield from (" " * 10 + line for line in others)
        names = short_names(self.data.session_ids)
        session = None
        for one in self.dropped():
            row = one.row
            if row.session_id != session:
                session = row.session_id
                yield screen.bold(in_short(f"session {session}", screen.width))
            short = f"{names.get(row.session_id, row.session_id)}/{row.turn_index}"
            name = visible(row.record_id if row.turn_index is None else short)
            parts = [part for part in (row.reason, row.detail, lengths(row)) if part]
            yield (
                in_short(f"  {name}", screen.width)
                + "  "
                + screen.styled(in_short("; ".join(parts), max(30, screen.width - len(name) - 4)), "yellow")
            )
            if one.begins:
                yield screen.dim("      " + in_short(one.begins, screen.width - 6))
        if rest := self.found - len(self.rows):
            yield f"{rest:,} more: without --limit, all are shown"

    def document(self) -> dict[str, Any]:
        turns = [{**asdict(one.row), "begins": one.begins} for one in self.dropped()]
        return {"dataset": str(self.data.path), "reasons": dict(self.counts.most_common()), "rejected": turns}

    def after(self, call: Callable[..., str]) -> str:
        row = next((row for row in self.rows if row.turn_index is not None), None)
        if row is None:
            return f"Look at the sessions: {call()}"
        if self.reason is None and len(self.counts) > 1:
            return f"Look at one reason: {call(None, '--rejected', '--reason', self.counts.most_common()[-1][0])}"
        return f"Look at one of these turns: {call(row.record_id)}"
