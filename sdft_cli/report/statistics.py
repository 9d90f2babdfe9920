"""The numbers of a dataset: lengths against the caps, sessions, tools, and what another cap would keep.

Every number is computed here, once; the terminal, the HTML page, the data card and `--json` only show it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sdft_cli.errors import DataError
from sdft_cli.records import Dataset, RecordRow, Rejection, Session
from sdft_cli.records.reasons import REASON_OF_CAP

CAPS = tuple(REASON_OF_CAP)
LENGTHS: tuple[tuple[str, str, str | None], ...] = (
    ("prompt_tokens", "student prompt", None),
    ("teacher_prompt_tokens", "teacher prompt", "max_prompt_tokens"),
    ("reference_tokens", "expert turn", "max_rollout_tokens"),
    ("sequence_tokens", "teacher prompt + turn", "max_seq_tokens"),
)
"""name, what it is, and the cap on it."""


@dataclass(frozen=True)
class Summary:
    """Order statistics of whole numbers; percentiles are nearest-rank, so each is one of the numbers."""

    count: int
    min: int
    median: int
    p90: int
    max: int


def cells_of(summary: Summary | None) -> tuple[str, ...]:
    """Return minimum, median, 90th percentile and maximum for a table."""
    if summary is None:
        return ("-",) * 4
    return tuple(f"{number:,}" for number in (summary.min, summary.median, summary.p90, summary.max))


@dataclass(frozen=True)
class Histogram:
    """Counts in bins whose borders are powers of two: bin i holds `edges[i] < x <= edges[i + 1]`; 0 counts as 1."""

    edges: tuple[int, ...]
    kept: tuple[int, ...]
    over_cap: tuple[int, ...]
    """Turns that were tokenised and rejected by a cap, whichever it was."""


@dataclass(frozen=True)
class Length:
    """One of the lengths of a turn, in tokens."""

    name: str
    what: str
    cap_name: str | None
    cap: int | None
    kept: Summary | None
    """None where no record was kept."""
    histogram: Histogram


@dataclass(frozen=True)
class CapChoice:
    """How many records a cap would keep if it were `value` and the other two stayed as they are."""

    value: int
    kept: int
    current: bool


@dataclass(frozen=True)
class ToolUse:
    """How often a tool is called, in all sessions and in the turns that are records."""

    name: str
    calls: int
    in_records: int


@dataclass(frozen=True)
class Statistics:
    """Everything that the report shows beside the funnel."""

    measured: int
    """Turns whose lengths are known: the records, and the turns rejected by a cap alone."""
    lengths: tuple[Length, ...]
    session_turns: Summary | None
    session_tokens: Summary | None
    """Longest tokenised turn of a session: the student's prompt and the expert's turn together."""
    tools: tuple[ToolUse, ...]
    caps: Mapping[str, tuple[CapChoice, ...]]

    def as_dict(self) -> dict[str, Any]:
        """Return plain dictionaries and lists, for `--json`."""
        return asdict(self)


def summary_of(values: Iterable[int]) -> Summary | None:
    """Return the order statistics of some numbers, or None if there are none."""
    ordered = sorted(values)
    if not ordered:
        return None
    rank = lambda share: ordered[max(0, math.ceil(share * len(ordered)) - 1)]  # noqa: E731
    return Summary(len(ordered), ordered[0], rank(0.5), rank(0.9), ordered[-1])


def histogram_of(kept: Sequence[int], over_cap: Sequence[int], cap: int | None) -> Histogram:
    """Count numbers in bins between powers of two, from the smallest number to the largest (or to the cap)."""
    values = [*kept, *over_cap, *([cap] if cap else [])]
    if not values:
        return Histogram((), (), ())
    bins = [_bin(value) for value in values]
    first, last = min(bins), max(bins)
    counts = [Counter(map(_bin, kept)), Counter(map(_bin, over_cap))]
    edges = [0 if exponent < 0 else 2**exponent for exponent in range(first - 1, last + 1)]
    inside = range(first, last + 1)
    return Histogram(tuple(edges), tuple(counts[0][b] for b in inside), tuple(counts[1][b] for b in inside))


def _bin(value: int) -> int:
    """Return the smallest exponent whose power of two is not below `value`; 0 for 0 and 1."""
    return max(0, value - 1).bit_length()


def _over_cap(rejected: Iterable[Rejection]) -> list[RecordRow]:
    """Return the turns that a cap rejected as the records that a higher one would make of them."""
    rows = []
    for turn in rejected:
        if turn.reason in REASON_OF_CAP.values():
            lengths = (turn.prompt_tokens, turn.teacher_prompt_tokens, turn.reference_tokens)
            if any(length is None for length in lengths):
                raise DataError(
                    f"{turn.record_id} was rejected by a cap without its lengths: run `sdft prepare` again."
                )
            rows.append(RecordRow(turn.record_id, turn.session_id, -1, *lengths, False))  # type: ignore[arg-type]
    return rows


def _length_of(turn: RecordRow, cap_name: str) -> int:
    return int(getattr(turn, next(name for name, _, cap in LENGTHS if cap == cap_name)))


def cap_choices(turns: Sequence[RecordRow], caps: Mapping[str, int], name: str) -> tuple[CapChoice, ...]:
    """Return candidate values of one cap, and how many of the tokenised turns each would keep.

    Candidates are the cap halved and doubled twice and the longest length there is; those that `sdft prepare` refuses
    (a prompt cap above the sequence cap) and those above the longest length are left out.
    """
    cap = caps[name]
    longest = max((_length_of(turn, name) for turn in turns), default=0)
    values = {cap, longest, *(cap * 2**power // 4 for power in range(5) if cap * 2**power // 4 <= longest)} - {0}
    if name == "max_prompt_tokens":
        values = {value for value in values if value <= caps["max_seq_tokens"]}
    if name == "max_seq_tokens":
        values = {value for value in values if value >= caps["max_prompt_tokens"]}
    others = [other for other in CAPS if other != name]
    lengths = sorted(_length_of(t, name) for t in turns if all(_length_of(t, other) <= caps[other] for other in others))
    return tuple(CapChoice(value, bisect_right(lengths, value), value == cap) for value in sorted(values))


def _tools(sessions: Iterable[Session], rows: Iterable[RecordRow]) -> tuple[ToolUse, ...]:
    targets = {(row.session_id, row.turn_index) for row in rows}
    calls, in_records = Counter[str](), Counter[str]()
    for session in sessions:
        for turn in session.assistant_turns():
            names = Counter(call.name for call in session.messages[turn].tool_calls)
            calls.update(names)
            if (session.session_id, turn) in targets:
                in_records.update(names)
    return tuple(ToolUse(name, calls[name], in_records[name]) for name in sorted(calls, key=lambda n: (-calls[n], n)))


def _caps_of(manifest: Mapping[str, Any]) -> dict[str, int]:
    config = manifest.get("config", {})
    missing = [name for name in CAPS if not isinstance(config.get(name), int)]
    if missing:
        raise DataError(f"The manifest has no {' and no '.join(missing)}: run `sdft prepare` again.")
    return {name: int(config[name]) for name in CAPS}


def statistics_of(
    manifest: Mapping[str, Any],
    sessions: Iterable[Session],
    rows: Sequence[RecordRow],
    rejected: Iterable[Rejection],
) -> Statistics:
    """Compute the statistics of records that need not be on disk yet; raises `DataError` if the manifest has no caps.

    `sessions`, `rows`, `rejected`: every record and dropped turn, and every session that one of them points into. The
    manifest's `config` holds the three caps.
    """
    caps = _caps_of(manifest)
    sessions = list(sessions)
    rejected_rows = _over_cap(rejected)
    turns = [*rows, *rejected_rows]
    lengths = []
    for name, what, cap_name in LENGTHS:
        kept, over_cap = ([getattr(turn, name) for turn in some] for some in (rows, rejected_rows))
        cap = caps[cap_name] if cap_name else None
        lengths.append(Length(name, what, cap_name, cap, summary_of(kept), histogram_of(kept, over_cap, cap)))
    session_tokens: dict[str, int] = {}
    for turn in turns:
        tokens = turn.prompt_tokens + turn.reference_tokens
        session_tokens[turn.session_id] = max(tokens, session_tokens.get(turn.session_id, 0))
    return Statistics(
        measured=len(turns),
        lengths=tuple(lengths),
        session_turns=summary_of(len(session.assistant_turns()) for session in sessions),
        session_tokens=summary_of(session_tokens.values()),
        tools=_tools(sessions, rows),
        caps={name: cap_choices(turns, caps, name) for name in CAPS},
    )


def dataset_statistics(dataset: Dataset) -> Statistics:
    """Compute the statistics of a dataset folder; raises as `statistics_of`."""
    rows = [record.row for record in (*dataset.train, *dataset.validation)]
    return statistics_of(dataset.manifest, dataset.sessions.values(), rows, dataset.rejected)


@dataclass(frozen=True)
class CapLoss:
    """What one cap costs: turns that `sdft prepare` rejected by it, and training records over the profile's own."""

    name: str
    cap: int
    """The dataset's."""
    rejected: int
    profile_cap: int
    over: int


def cap_losses(dataset: Dataset, profile_caps: Mapping[str, int]) -> tuple[CapLoss, ...]:
    """Count the turns lost to each cap of the dataset, and the training records above each cap of a profile.

    A teacher prompt above the profile's cap is a record that training refuses; an expert's turn above its rollout cap
    is not lost, the student's answer is only cut there. Raises as `statistics_of`.
    """
    caps = _caps_of(dataset.manifest)
    rejected = Counter(turn.reason for turn in dataset.rejected)
    return tuple(
        CapLoss(
            name,
            caps[name],
            rejected[REASON_OF_CAP[name]],
            profile_caps[name],
            sum(_length_of(record.row, name) > profile_caps[name] for record in dataset.train),
        )
        for name in CAPS
    )
