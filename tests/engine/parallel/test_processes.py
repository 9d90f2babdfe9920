"""Processes that speak through gloo, and one that has nobody to speak to: the same answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.engine.parallel.launcher import Launcher

torch = pytest.importorskip("torch")

from sdft_cli.engine.parallel.launch import launched  # noqa: E402
from sdft_cli.engine.parallel.processes import ALONE, join  # noqa: E402
from sdft_cli.errors import UsageError  # noqa: E402


def probed(launcher: Launcher, what: str, count: int, folder: Path) -> list[dict[str, Any]]:
    arguments = [what, str(folder)]
    answer = launcher.run(count, "tests.engine.parallel.probe", arguments, folder, str(folder / "log"))
    assert answer["codes"] == [0] * count, (folder / "log.err0").read_text()
    return [json.loads((folder / str(rank)).read_text()) for rank in range(count)]


@pytest.mark.parametrize("count", [1, 3])
def test_what_processes_say_to_each_other(launcher: Launcher, count: int, tmp_path: Path) -> None:
    found = probed(launcher, "everything", count, tmp_path)
    for rank, one in enumerate(found):
        assert one["same"] == "of 0"
        assert one["gather"] == [{"rank": r} for r in range(count)]
        total = sum(range(count))
        assert one["sum"][0] == [[total + 0.25 * count] * 2] * 3
        exact = sum(torch.tensor([0.001 * r]).bfloat16().float() for r in range(count))
        assert one["sum"][1] == exact.bfloat16().tolist()  # type: ignore[union-attr]  # rounded once
        assert one["nothing"] == []
        assert one["in_turn"] is (rank > 0)  # the first one made the mark, the others found it
        by = [line.split(" by ") for line in one["spread"]]
        assert [int(row) for row, _ in by] == [0, 1, 2, 3, 4]
        assert one["spread"] == found[0]["spread"]
        assert sorted(one["worked"]) == [int(row) for row, who in by if int(who) == rank]
    assert sum(len(one["worked"]) for one in found) == 5


def test_what_differs_is_told_by_all(launcher: Launcher, tmp_path: Path) -> None:
    found = probed(launcher, "unequal", 2, tmp_path)
    assert found[0] == found[1]
    assert found[0]["error"].startswith("Process 1 has another colour than process 0: give all processes")


def test_the_others_hear_why_one_failed(launcher: Launcher, tmp_path: Path) -> None:
    found = probed(launcher, "failing", 3, tmp_path)
    assert found[2]["raised"] == "DataError: The third page is missing: print it again."
    said = "LostProcess: Process 2 of 3 (counted from 0) failed: The third page is missing: print it again."
    assert [one["raised"] for one in found[:2]] == [said, said]


def test_one_process_has_all_rows_in_their_order() -> None:
    assert ALONE.mine([[2], [1], [0]]) == [0, 1, 2]
    assert ALONE.spread([[2], [1]], lambda mine: [10 * i for i in mine]) == [0, 10]
    assert (ALONE.first, ALONE.count, ALONE.gather("a"), ALONE.same("b")) == (True, 1, ["a"], "b")
    error = ValueError("no")
    assert ALONE.leave(error) is error


def test_a_single_process_of_a_launcher_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    assert launched() == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "2")
    assert launched() == (2, 3)
    for name, wrong, said in (("WORLD_SIZE", "two", "'two'"), ("RANK", "-1", "'-1'"), ("RANK", "3", "counted from 0")):
        with monkeypatch.context() as changed:
            changed.setenv(name, wrong)
            with pytest.raises(UsageError, match=said):
                launched()
    with monkeypatch.context() as changed:
        changed.setenv("MASTER_PORT", "here")
        with pytest.raises(UsageError, match="MASTER_PORT is 'here'"):
            join()
    monkeypatch.delenv("MASTER_PORT")
    assert launched() == (0, 1)
