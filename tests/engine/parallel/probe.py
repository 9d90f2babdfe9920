"""What a process of several does in the tests of `processes.py`; writes what it found as JSON to `FOLDER/RANK`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from sdft_cli.engine.parallel.processes import Processes, join
from sdft_cli.errors import DataError, MachineError


def everything(processes: Processes, folder: Path) -> dict[str, Any]:
    rank = processes.rank
    tensors = [torch.full((3, 2), rank + 0.25), torch.tensor([1e-3 * rank], dtype=torch.bfloat16)]
    processes.sum(tensors)
    rows = [[1, 2, 3], [1, 2, 4], [9], [1, 2, 3, 5], [8, 8]]
    worked: list[int] = []

    def work(mine: list[int]) -> list[str]:
        worked.extend(mine)
        return [f"{i} by {rank}" for i in mine]

    marks = folder / "mark"
    first = processes.in_turn(lambda: marks.exists() or marks.touch() is not None)
    return {
        "same": processes.same(f"of {rank}"),
        "gather": processes.gather({"rank": rank}),
        "sum": [tensor.tolist() for tensor in tensors],
        "spread": processes.spread(rows, work),
        "worked": worked,
        "nothing": processes.spread([], work),
        "in_turn": first,
    }


def unequal(processes: Processes, folder: Path) -> dict[str, Any]:
    processes.agree("colour", "blue")
    try:
        processes.agree("colour", "green" if processes.rank == 1 else "blue")
    except MachineError as error:
        return {"error": str(error)}
    return {}


def failing(processes: Processes, folder: Path) -> dict[str, Any]:
    """The last one fails, while the others wait for it."""
    if processes.rank == processes.count - 1:
        raise DataError("The third page is missing: print it again.")
    processes.wait()
    return {}


def whole(folder: Path, data: str, model: str) -> None:
    """Train as a part of another command, which knows nothing of several processes."""
    from sdft_cli.config import load_train_config
    from sdft_cli.stages.train import new_job, run_training

    config = load_train_config("cpu-demo", [f"model={model}", "backend=transformers"])
    run_training(new_job(Path(data), config, "cpu-demo", folder / "whole", False))


def main() -> None:
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "whole":
        whole(folder, *sys.argv[3:])
        return
    processes = join()
    try:
        found = {"everything": everything, "unequal": unequal, "failing": failing}[what](processes, folder)
    except Exception as error:
        found = {"raised": f"{type(error).__name__}: {error}"}
        processes.leave(error)
    else:
        processes.close()
    (folder / str(os.environ.get("RANK", 0))).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
