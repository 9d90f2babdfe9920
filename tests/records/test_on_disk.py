from __future__ import annotations

import pytest

from sdft_cli.errors import MachineError
from sdft_cli.records import Message, Session
from sdft_cli.records.on_disk import Changed, OnDisk


def test_items_come_back_equal_and_in_order() -> None:
    items = [Session(f"s{i}", (Message("user", "é\ud800" * i),), metadata={"n": (i, None)}) for i in range(5)]
    stored = OnDisk(items[:3])
    assert list(stored) == items[:3]
    stored.append(items[3])  # after a look, and while one goes on
    looked = []
    for item in stored:
        looked.append(item)
        if len(stored) < 5:
            stored.append(items[4])
    assert looked == items[:4]
    assert (len(stored), stored[0], stored[-1], stored[1:3]) == (5, items[0], items[4], items[1:3])
    assert items[2] in stored
    with pytest.raises(IndexError):
        stored[5]
    assert not OnDisk[int]()


def test_a_changed_sequence_is_changed_at_each_look() -> None:
    added = 1
    changed = Changed(OnDisk([1, 2, 3]), lambda i, item: 10 * i + item + added)
    assert (list(changed), changed[2], changed[-1], changed[:2], len(changed)) == ([2, 13, 24], 24, 24, [2, 13], 3)
    added = 2
    assert changed[0] == 3


@pytest.mark.usefixtures("no_room")
def test_a_full_disk_is_one_sentence() -> None:
    with pytest.raises(MachineError, match=r"Writing temporary files failed \(File too large\): set TMPDIR"):
        OnDisk(["x" * 1_000] * 200)
    stored = OnDisk(["x" * 1_000] * 66)  # a part of it is still in a buffer
    with pytest.raises(MachineError, match=r"Writing temporary files failed \(File too large\)"):
        list(stored)
