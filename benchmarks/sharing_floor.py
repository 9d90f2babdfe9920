"""How far exact and broken prefix sharing are from turns alone, against the floor of the same model, as a table.

    python -m benchmarks.sharing_floor                      # all models, about 20 minutes on two CPU cores
    python -m benchmarks.sharing_floor --layers 4 --hidden 256

Random models: Qwen3.5's hybrid (depth-first) and Qwen3 (packed), bf16 and fp32. Each cell is a distance in floors, that
is how many times as far as two ways that share nothing are from each other. `margin`: the largest of a row's distances,
in units of what is allowed; above 1 the check refuses. `wider` shows other statistics that could have been taken.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

import torch

from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.passes import sharing_check
from sdft_cli.engine.passes.sharing_check import Distance, SharingCheck
from tests.engine.passes import planted

WHAT = ("states", "caches", "gradients")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
KINDS: dict[str, tuple[str, Any]] = {
    "hybrid": ("depth_first", planted.DEPTH_FIRST),
    "attention": ("packed", planted.PACKED),
}


def margin(found: Sequence[Distance]) -> float:
    """Return the largest distance in units of what is allowed."""
    return max(distance.found / distance.allowed for distance in found)


def row(name: str, found: Sequence[Distance]) -> str:
    """Return a line of the table: distances, and the margin."""
    by = {distance.what: distance for distance in found}
    cells = [f"{by[what].found:.1e}" for what in WHAT]
    return f"| {' | '.join([name, *cells, f'{margin(found):.2f}'])} |"


def table(backend: Backend, kind: Any, faults: planted.Faults) -> list[str]:
    """Return the table of one model."""
    check = SharingCheck(backend)
    floors = [f"{check.plain.floors[what]:.1e}" for what in WHAT]
    lines = [f"| | {' | '.join(WHAT)} | margin |", "| --- | ---: | ---: | ---: | ---: |"]
    lines.append(f"| floor | {' | '.join(floors)} | |")
    for name, fault in {"exact": planted.exact, **faults}.items():
        with fault(backend):
            lines.append(row(name, list(check.distances(kind))))
    return lines


def by_layer_and_tensor(backend: Backend, kind: Any, faults: planted.Faults) -> list[str]:
    """Return lines that compare ways to group the gradient: floor, exact, and the nearest fault of the gradient."""
    names = [name for name, p in backend.model.named_parameters() if p.requires_grad]
    groups = {
        "whole": ["all"] * len(names),
        "layer": [re.sub(r".*\.layers\.(\d+)\..*", r"\1", name) for name in names],
        "tensor": names,
        "matrix of all layers": sharing_check.matrices(backend),
    }
    lines = []
    for group, labels in groups.items():
        with planted.replaced(sharing_check, "matrices", lambda _, labels=labels: labels):
            check = SharingCheck(backend)
            floor, found = check.plain.floors["gradients"], {}
            for name in ("exact", *(name for name in faults if name.startswith("gradient"))):
                with {"exact": planted.exact, **faults}[name](backend):
                    found[name] = next(d.found for d in check.distances(kind) if d.what == "gradients")
        exact = found.pop("exact")
        lines.append(f"{group}: floor {floor:.1e}, exact {exact / floor:.2f} floors, {_nearest(found, floor)}")
    return lines


def _nearest(found: dict[str, float], floor: float) -> str:
    name = min(found, key=lambda name: found[name])
    return f"nearest fault ({name}) {found[name] / floor:.2f} floors"


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 24, 32])
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--dtype", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--groups", action="store_true", help="compare ways to group the gradient instead")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for model in chosen.model:
        kind, faults = KINDS[model]
        for layers, hidden, dtype in ((a, b, c) for c in chosen.dtype for a in chosen.layers for b in chosen.hidden):
            backend = planted.deep(model, layers, hidden, DTYPES[dtype], size=32)
            print(f"\n{model}, {kind}, {layers} layers x {hidden}, {dtype}", flush=True)
            lines = by_layer_and_tensor if chosen.groups else table
            print("\n".join(lines(backend, kind, faults)), flush=True)


if __name__ == "__main__":
    main()
