"""The sessions of a dataset as a list: what they hold, what became of their turns, and how they begin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from sdft_cli.inspection.names import short_names
from sdft_cli.inspection.screen import Screen
from sdft_cli.records.lazy import SPLITS, LazyDataset, SessionGroup
from sdft_cli.report.visible import cells_of, in_short, visible

BEGINNING = 400
"""So many characters of a session's first user message are read."""
WIDEST = 40
"""A name that needs more cells is cut; --json has all of it."""
_HEADS = ("messages", "train", "valid.", "dropped", "tokens")


@dataclass(frozen=True)
class Listed:
    """A session of the list.

    `tokens`: of its longest turn that was counted, prompt and turn. `begins` is the beginning of the user's first
    message, which has `characters` in all.
    """

    session_id: str
    messages: int
    train: int
    validation: int
    rejected: int
    tokens: int | None
    begins: str
    characters: int


class SessionList:
    """The sessions; those of a split if one is named, and so many at most."""

    def __init__(self, data: LazyDataset, split: str | None = None, limit: int | None = None) -> None:
        self.data, self.split, self.limit = data, split, limit

    def rows(self) -> Iterator[Listed]:
        """Read the sessions, a row group at a time."""
        counts = {table: _counts(self.data.table(table)) for table in (*SPLITS, "rejected")}
        left = self.limit
        only = set(counts[self.split]) if self.split else None
        for group in self.data.groups(("role", "content"), only):
            for index, (begins, characters) in enumerate(beginnings(group)):
                name = group.ids[index]
                if only is not None and name not in only:
                    continue
                if left == 0:
                    return
                left = None if left is None else left - 1
                found = {table: counts[table].get(name, (0, None)) for table in counts}
                tokens = [most for _, most in found.values() if most is not None]
                train, validation, rejected = (number for number, _ in found.values())
                messages = group.starts[index + 1] - group.starts[index]
                most = max(tokens, default=None)
                yield Listed(name, messages, train, validation, rejected, most, begins, characters)

    def lines(self, screen: Screen) -> Iterator[str]:
        names = {one: in_short(name, WIDEST, told=False) for one, name in short_names(self.data.session_ids).items()}
        width = max((cells_of(name) for name in names.values()), default=0)
        funnel = self.data.manifest["funnel"]
        total = len(self.data.session_ids)
        kept = f"{funnel['train']:,} train and {funnel['validation']:,} validation records"
        yield f"{visible(str(self.data.path))}: {total:,} session(s), {funnel['turns']:,} turns, {kept}"
        yield screen.bold(f"{'session':<{width}}" + "".join(f"{head:>{len(head) + 2}}" for head in _HEADS))
        for row in self.rows():
            numbers = (row.messages, row.train, row.validation, row.rejected, row.tokens)
            cells = (
                f"{'-' if n is None else format(n, ','):>{len(h) + 2}}" for n, h in zip(numbers, _HEADS, strict=True)
            )
            name = names[row.session_id]
            yield name + " " * (width - cells_of(name)) + "".join(cells)
            yield screen.dim("    " + in_short(row.begins, screen.width - 4, row.characters))

    def document(self) -> dict[str, Any]:
        return {"dataset": str(self.data.path), "sessions": [asdict(row) for row in self.rows()]}

    def after(self, call: Callable[..., str]) -> str:
        ids = self.data.session_ids
        return f"Look at a session: {call(short_names(ids)[ids[0]])}" if ids else "The dataset has no sessions."


def _counts(table: Any) -> dict[str, tuple[int, int | None]]:
    """Return the rows of each session in a table, and the tokens of the longest that was counted."""
    import pyarrow.compute as pc

    tokens = pc.add(table["prompt_tokens"], table["reference_tokens"])
    found = table.select(["session_id"]).append_column("tokens", tokens)
    found = found.group_by("session_id").aggregate([("session_id", "count"), ("tokens", "max")])
    columns = (found[name].to_pylist() for name in ("session_id", "session_id_count", "tokens_max"))
    return {name: (count, most) for name, count, most in zip(*columns, strict=True)}


def beginnings(group: SessionGroup) -> list[tuple[str, int]]:
    """Return how the user's first message of each session begins, and its length; ("", 0) where there is none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    roles = group.of("role")
    users = pc.indices_nonzero(pc.equal(roles, "user")).to_pylist()
    first: list[int | None] = []
    place = 0
    for start, stop in zip(group.starts, group.starts[1:], strict=False):
        while place < len(users) and users[place] < start:
            place += 1
        first.append(users[place] if place < len(users) and users[place] < stop else None)
    texts = group.of("content").take(pa.array(first, pa.int64()))
    heads, lengths = pc.utf8_slice_codeunits(texts, 0, BEGINNING), pc.utf8_length(texts)
    return [(text or "", length or 0) for text, length in zip(heads.to_pylist(), lengths.to_pylist(), strict=True)]
