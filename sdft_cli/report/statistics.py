"""The numbers of a dataset: lengths against the caps, sessions, tools, and what another cap would keep.

Every number is computed here, once; the terminal, the HTML page, the data card and `--json` only show it.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

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
LENGTH_OF_CAP = {cap: name for name, _, cap in LENGTHS if cap}
Numbers = npt.NDArray[np.int64]


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


def summary_of(values: npt.ArrayLike) -> Summary | None:
    """Return the order statistics of some whole numbers, or None if there are none."""
    ordered = np.sort(np.asarray(values, dtype=np.int64))
    if not len(ordered):
        return None
    rank = lambda share: int(ordered[max(0, math.ceil(share * len(ordered)) - 1)])  # noqa: E731
    return Summary(len(ordered), int(ordered[0]), rank(0.5), rank(0.9), int(ordered[-1]))


def histogram_of(kept: npt.ArrayLike, over_cap: npt.ArrayLike, cap: int | None) -> Histogram:
    """Count numbers in bins between powers of two, from the smallest number to the largest (or to the cap)."""
    counts = [_bins(kept), _bins(over_cap)]
    bins = {*counts[0], *counts[1], *([_bin(cap)] if cap else [])}
    if not bins:
        return Histogram((), (), ())
    first, last = min(bins), max(bins)
    edges = [0 if exponent < 0 else 2**exponent for exponent in range(first - 1, last + 1)]
    inside = range(first, last + 1)
    return Histogram(tuple(edges), tuple(counts[0][b] for b in inside), tuple(counts[1][b] for b in inside))


def _bin(value: int) -> int:
    """Return the smallest exponent whose power of two is not below `value`; 0 for 0 and 1."""
    return max(0, value - 1).bit_length()


def _bins(values: npt.ArrayLike) -> Counter[int]:
    found, counts = np.unique(np.asarray(values, dtype=np.int64), return_counts=True)
    bins = Counter[int]()
    for value, count in zip(found.tolist(), counts.tolist(), strict=True):
        bins[_bin(value)] += count
    return bins


@dataclass(frozen=True)
class Tokenised:
    """The turns whose lengths are known: records, and turns that a cap rejected; an array for each of `LENGTHS`."""

    of: Mapping[str, Numbers]
    kept: npt.NDArray[np.bool_]
    """Which of them are records."""
    longest: Mapping[str, int]
    """Session id -> the student's prompt and the expert's turn of its longest turn, in tokens."""


def tokenised(rows: Iterable[RecordRow], rejected: Iterable[Rejection]) -> Tokenised:
    """Look at each turn once; raises `DataError` where a cap rejected a turn whose lengths are not known."""
    numbers, longest = array("q"), dict[str, int]()

    def count(session: str, prompt: int, teacher: int, reference: int) -> None:
        numbers.extend((prompt, teacher, reference))
        longest[session] = max(prompt + reference, longest.get(session, 0))

    for row in rows:
        count(row.session_id, row.prompt_tokens, row.teacher_prompt_tokens, row.reference_tokens)
    records = len(numbers) // 3
    for turn in rejected:
        if turn.reason in REASON_OF_CAP.values():
            lengths = (turn.prompt_tokens, turn.teacher_prompt_tokens, turn.reference_tokens)
            if any(length is None for length in lengths):
                raise DataError(
                    f"{turn.record_id} was rejected by a cap without its lengths: run `sdft prepare` again."
                )
            count(turn.session_id, *lengths)  # type: ignore[arg-type]
    table = np.array(numbers, dtype=np.int64).reshape(-1, 3)
    of = dict(zip((name for name, _, _ in LENGTHS), (*table.T, table[:, 1] + table[:, 2]), strict=True))
    return Tokenised(of, np.arange(len(table)) < records, longest)


def _within(turns: Tokenised, caps: Mapping[str, int], names: Iterable[str]) -> npt.NDArray[np.bool_]:
    """Say of each turn whether it is within those caps."""
    fits = np.ones(len(turns.kept), dtype=bool)
    for name in names:
        fits &= _under(turns, name) <= caps[name]
    return fits


def _under(turns: Tokenised, cap_name: str) -> Numbers:
    return turns.of[LENGTH_OF_CAP[cap_name]]


def _length_of(turn: RecordRow, cap_name: str) -> int:
    return int(getattr(turn, LENGTH_OF_CAP[cap_name]))


def cap_choices(turns: Tokenised, caps: Mapping[str, int], name: str) -> tuple[CapChoice, ...]:
    """Return candidate values of one cap, and how many of the tokenised turns each would keep.

    Candidates are the cap halved and doubled twice and the longest length there is; those that `sdft prepare` refuses
    (a prompt cap above the sequence cap) and those above the longest length are left out.
    """
    cap, every = caps[name], _under(turns, name)
    longest = int(every.max(initial=0))
    values = {cap, longest, *(cap * 2**power // 4 for power in range(5) if cap * 2**power // 4 <= longest)} - {0}
    if name == "max_prompt_tokens":
        values = {value for value in values if value <= caps["max_seq_tokens"]}
    if name == "max_seq_tokens":
        values = {value for value in values if value >= caps["max_prompt_tokens"]}
    lengths = every[_within(turns, caps, [other for other in CAPS if other != name])]
    return tuple(CapChoice(value, int((lengths <= value).sum()), value == cap) for value in sorted(values))


def _tools(sessions: Iterable[Session], rows: Iterable[RecordRow]) -> tuple[tuple[ToolUse, ...], list[int]]:
    """Return the use of each tool, the most frequent first; and the turns of each session."""
    targets: dict[str, array[int]] = {}
    for row in rows:
        targets.setdefault(row.session_id, array("q")).append(row.turn_index)
    calls, in_records, turns = Counter[str](), Counter[str](), []
    for session in sessions:
        records, own = set(targets.get(session.session_id, ())), session.assistant_turns()
        turns.append(len(own))
        for turn in own:
            names = Counter(call.name for call in session.messages[turn].tool_calls)
            calls.update(names)
            if turn in records:
                in_records.update(names)
    ordered = sorted(calls, key=lambda name: (-calls[name], name))
    return tuple(ToolUse(name, calls[name], in_records[name]) for name in ordered), turns


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

    `sessions`, `rows`, `rejected`: every record and dropped turn, and every session that one of them points into; they
    may be larger than memory. The manifest's `config` holds the three caps.
    """
    caps = _caps_of(manifest)
    turns = tokenised(rows, rejected)
    lengths = []
    for name, what, cap_name in LENGTHS:
        kept, over_cap = turns.of[name][turns.kept], turns.of[name][~turns.kept]
        cap = caps[cap_name] if cap_name else None
        lengths.append(Length(name, what, cap_name, cap, summary_of(kept), histogram_of(kept, over_cap, cap)))
    tools, session_turns = _tools(sessions, rows)
    return Statistics(
        measured=len(turns.kept),
        lengths=tuple(lengths),
        session_turns=summary_of(session_turns),
        session_tokens=summary_of(list(turns.longest.values())),
        tools=tools,
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
