"""Which records the gate scores, and whose reference each of them is shown as a control."""

from __future__ import annotations

from collections.abc import Sequence

from sdft_cli.engine.score.scoring import choose_records, group_of
from sdft_cli.errors import DataError
from sdft_cli.intervals import FEW
from sdft_cli.records import Dataset, Record


def gate_records(dataset: Dataset, count: int) -> tuple[list[Record], str]:
    """Choose the records to score and name their split: validation, or train if few sessions are held out.

    Few are fewer independent ones than `FEW` and than there are in train. The gate scores the base model, which has
    seen neither.

    Raises:
        DataError: the dataset has no record.
    """
    held_out, trained_on = (len(set(map(group_of, dataset.split(name)))) for name in ("validation", "train"))
    split = "validation" if held_out >= min(FEW, trained_on) else "train"
    records = choose_records(dataset.split(split), count)
    if not records:
        raise DataError("The dataset has no training record: prepare one with more sessions.")
    return records, split


def other_records(records: Sequence[Record]) -> list[list[int]]:
    """Return ways to give each record the reference of another one, the best first.

    Each is a permutation without a fixed point, and no two agree anywhere. With the records sorted by the tools that
    they call, the k-th rotation is one for k = 1 .. n - 1. Best is the rotation that least often gives a record a turn
    equal to its own, then one of its own session, then one with the same tools.
    """
    tools = [sorted(call.name for call in r.reference.tool_calls) for r in records]
    order = sorted(range(len(records)), key=lambda i: (tools[i], records[i].record_id))

    def rotated(k: int) -> list[int]:
        found = [0] * len(order)
        for place, i in enumerate(order):
            found[i] = order[(place + k) % len(order)]
        return found

    def cost(of: Sequence[int]) -> tuple[int, int, int]:
        pairs = [(i, j, records[i], records[j]) for i, j in enumerate(of)]
        return (
            sum(_same_turn(a, b) for _, _, a, b in pairs),
            sum(a.row.session_id == b.row.session_id for _, _, a, b in pairs),
            sum(tools[i] == tools[j] for i, j, _, _ in pairs),
        )

    return sorted((rotated(k) for k in range(1, len(order))), key=cost)


def _same_turn(a: Record, b: Record) -> bool:
    def turn(record: Record) -> object:
        return record.reference.content, [(c.name, c.arguments) for c in record.reference.tool_calls]

    return turn(a) == turn(b)
