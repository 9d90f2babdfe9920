"""How far exact and broken prefix sharing are from turns alone, against the floor of the same model, as a table.

    python -m benchmarks.sharing_floor                      # all models, an hour on one CPU core
    python -m benchmarks.sharing_floor --layers 4 --hidden 256
    python -m benchmarks.sharing_floor --weights smollm2-135m

Random models: Qwen3.5's hybrid (depth-first) and Qwen3 (packed), bf16 and fp32. Cells are relative distances from turns
alone. `margin`: the largest of a row's distances in units of what is allowed; above 1 the check refuses. `--statistics`
shows what could have been compared instead: how many floors exact sharing and the nearest fault are away.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from sdft_cli.config import load_train_config
from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.models.load import load_backend
from sdft_cli.engine.models.names import resolve_model
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
    floors = [f"{max(check.ways[what]):.1e}" for what in WHAT]
    lines = [f"| | {' | '.join(WHAT)} | margin |", "| --- | ---: | ---: | ---: | ---: |"]
    lines.append(f"| floor | {' | '.join(floors)} | |")
    for name, fault in {"exact": planted.exact, **faults}.items():
        with fault(backend):
            lines.append(row(name, list(check.distances(kind))))
    return lines


Pair = tuple[Sequence[Any], Sequence[Any]]


def recorded(
    backend: Backend, kind: Any, faults: planted.Faults
) -> tuple[dict[str, list[Pair]], dict[str, list[Pair]]]:
    """Return what was compared, states and gradients, by name: found, and turns alone; `floor` has several."""
    states: dict[str, list[Pair]] = {}
    gradients: dict[str, list[Pair]] = {}
    now, own = ["floor"], (sharing_check.furthest, sharing_check.gradient_distance)

    def furthest(found: Any, expected: Any) -> float:
        states.setdefault(now[0], []).append((found, expected))
        return own[0](found, expected)

    def gradient_distance(groups: Any, found: Any, expected: Any) -> float:
        gradients.setdefault(now[0], []).append((found, expected))
        return own[1](groups, found, expected)

    check = SharingCheck(backend)
    with (
        planted.replaced(sharing_check, "furthest", furthest),
        planted.replaced(sharing_check, "gradient_distance", gradient_distance),
    ):
        check.ways  # noqa: B018  # measures the floor
        for name, fault in {"exact": planted.exact, **faults}.items():
            now[0] = name
            with fault(backend):
                list(check.distances(kind))
    # The floor has states of two ways, then their caches; the others have states, then caches.
    return {name: pairs[: (len(pairs) + 1) // 2] for name, pairs in states.items()}, gradients


def statistics(backend: Backend, kind: Any, faults: planted.Faults) -> list[str]:
    """Return a table of what could have been compared: exact sharing and the nearest fault, in floors."""
    states, gradients = recorded(backend, kind, faults)
    names = [name for name, p in backend.model.named_parameters() if p.requires_grad]
    layers = [re.sub(r".*\.layers\.(\d+)\..*", r"\1", name) for name in names]
    ways: dict[str, tuple[dict[str, list[Pair]], Any]] = {
        "states, whole": (states, lambda a, b: sharing_check.furthest([torch.cat(a)], [torch.cat(b)])),
        "states, by turn": (states, sharing_check.furthest),
        "states, by position": (states, lambda a, b: sharing_check.furthest(torch.cat(a), torch.cat(b))),
        "gradients, whole": (gradients, partial(sharing_check.gradient_distance, [""] * len(names))),
        "gradients, by layer": (gradients, partial(sharing_check.gradient_distance, layers)),
        "gradients, by tensor": (gradients, partial(sharing_check.gradient_distance, names)),
        "gradients, by matrix": (gradients, partial(sharing_check.gradient_distance, sharing_check.matrices(backend))),
    }
    lines = ["| compared | floor | exact, floors | nearest fault, floors |", "| --- | ---: | ---: | --- |"]
    for way, (pairs, measure) in ways.items():
        found = {name: max(measure(a, b) for a, b in some) for name, some in pairs.items()}
        floor, exact = found.pop("floor"), found.pop("exact")
        seen = ("gradient",) if way.startswith("gradients") else ("mask", "position", "state")
        near = min((name for name in found if name.startswith(seen)), key=lambda name: found[name])
        lines.append(f"| {way} | {floor:.1e} | {exact / floor:.2f} | {found[near] / floor:.2f} ({near}) |")
    return lines


def loaded(name: str) -> Backend:
    """Return a model with its own weights, in bf16, with a fresh adapter."""
    config = load_train_config("cpu-demo", ["dtype=bfloat16"])
    return load_backend(config, "transformers", resolve_model(name))


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 24, 32])
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--dtype", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--statistics", action="store_true", help="compare what could have been compared instead")
    parser.add_argument("--weights", help="a model with full attention: folder or alias; packed passes, in bf16")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    lines = statistics if chosen.statistics else table
    if chosen.weights:
        print("\n".join(lines(loaded(chosen.weights), "packed", planted.PACKED)))
        return
    for model in chosen.model:
        kind, faults = KINDS[model]
        for layers, hidden, dtype in ((a, b, c) for c in chosen.dtype for a in chosen.layers for b in chosen.hidden):
            backend = planted.deep(model, layers, hidden, DTYPES[dtype], size=32)
            print(f"\n{model}, {kind}, {layers} layers x {hidden}, {dtype}", flush=True)
            print("\n".join(lines(backend, kind, faults)), flush=True)


if __name__ == "__main__":
    main()
