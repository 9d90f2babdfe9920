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


def layers(processes: Processes, folder: Path) -> dict[str, Any]:
    """Run a sharded model of three layers in another way on each process, and compare it with a whole one."""
    from torch.distributed.tensor import DTensor

    from sdft_cli.engine.parallel.sharding import Sharding

    torch.manual_seed(0)
    whole, model = Tower(), Tower()
    model.load_state_dict(whole.state_dict())
    found = processes.shard(model, torch.device("cpu"), Sharding(None, one_reads=False))
    inputs = torch.randn(5, 7)

    def open_layers() -> list[int]:
        return [i for i, block in enumerate(model.blocks) if not isinstance(block.weight, DTensor)]

    most, gathered, least = 0, 0, found._least

    def counted_open() -> None:
        nonlocal most
        most = max(most, len(open_layers()))

    def counted(number: int) -> int:
        nonlocal gathered
        counted_open()
        place = least(number)
        gathered += place < len(found)
        return place

    found._least = counted
    for block in model.blocks:
        block.register_forward_pre_hook(lambda *_: counted_open())
    results: list[list[Any]] = [[], []]
    for tower, result in zip((model, whole), results, strict=True):
        for _ in range(2 if processes.rank == 0 else 0):
            given = inputs.clone().requires_grad_()
            output = tower(given)
            output.sin().sum().backward()
            result += [output.detach(), given.grad, tower.adapter.grad.clone()]
        if processes.rank == 1:
            with torch.no_grad():
                result += [tower(inputs), tower.blocks[2](inputs), tower.blocks[0](inputs), tower(inputs)]
    processes.wait()
    difference = max((float((a - b).abs().max()) for a, b in zip(*results, strict=True)), default=0.0)
    return {"difference": difference, "whole": open_layers(), "most": most, "gathered": gathered}


class Block(torch.nn.Linear):
    """A frozen layer, without gradient of its own."""

    def __init__(self) -> None:
        super().__init__(7, 7)
        self.requires_grad_(False)


class Tower(torch.nn.Module):
    """Three frozen layers, one parameter that learns; as much of a peft model as `Several.shard` asks for."""

    _no_split_modules = ("Block",)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block() for _ in range(3))
        self.adapter = torch.nn.Parameter(torch.ones(7))

    def get_base_model(self) -> torch.nn.Module:
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = (block(x) * self.adapter).tanh() + x
        return x


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


WHAT = {"everything": everything, "unequal": unequal, "layers": layers, "failing": failing}


def main() -> None:
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "whole":
        whole(folder, *sys.argv[3:])
        return
    processes = join()
    try:
        found = WHAT[what](processes, folder)
    except Exception as error:
        found = {"raised": f"{type(error).__name__}: {error}"}
        processes.leave(error)
    else:
        processes.close()
    (folder / str(os.environ.get("RANK", 0))).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
