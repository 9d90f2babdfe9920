"""What waiting threads cost: training steps alone and beside one busy process, with several settings of OpenMP.

    python -m benchmarks.bench_threads DATASET [--steps 3] [--repetitions 3] [--profile cpu-demo]

DATASET is one that `sdft prepare` wrote for the profile's model, e.g. demo/data of `sdft demo`. Every run is a process
of its own, settings take turns; seconds are those of the optimiser steps, without loading. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SETTINGS: dict[str, dict[str, str]] = {
    "OpenMP's own": {"GOMP_SPINCOUNT": "300000"},
    "asleep": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"},
    "spin 1,000": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"},
    "spin 2,000": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000"},
    "spin 10,000": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"},
}
"""The first one spells out OpenMP's default, so that sdft leaves it alone."""


@contextmanager
def busy_process(on: bool) -> Iterator[None]:
    """Keep one core busy meanwhile."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if on else None
    try:
        yield
    finally:
        if other:
            other.kill()
            other.wait()


def steps_seconds(dataset: Path, profile: str, steps: int, setting: dict[str, str]) -> float:
    """Train for a few steps; return their seconds."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["gate.action=off", "heldout.every=null", "rehearse=false", f"optim.max_steps={steps}"]
        command = [
            sys.executable,
            "-m",
            "sdft_cli",
            "train",
            str(dataset),
            "--profile",
            profile,
            "--out",
            f"{folder}/run",
        ]
        environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
        subprocess.run(
            [*command, *(word for option in options for word in ("--set", option))],
            check=True,
            capture_output=True,
            env={**environment, **setting},
        )
        lines = Path(folder, "run", "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return float(sum(json.loads(line)["seconds"] for line in lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--profile", default="cpu-demo")
    arguments = parser.parse_args()
    found: dict[tuple[str, bool], list[float]] = {(name, busy): [] for name in SETTINGS for busy in (False, True)}
    for number in range(arguments.repetitions):
        for name, busy in list(found) if number % 2 == 0 else list(reversed(found)):
            with busy_process(busy):
                seconds = steps_seconds(arguments.dataset, arguments.profile, arguments.steps, SETTINGS[name])
            found[name, busy].append(seconds)
            print(f"  {name}, {'beside a busy process' if busy else 'alone'}: {seconds:.1f} s", file=sys.stderr)
    base = statistics.median(found[next(iter(SETTINGS)), False])
    print("| threads wait | alone, s | against OpenMP's own | beside a busy process, s | against alone |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name in SETTINGS:
        alone, beside = (statistics.median(found[name, busy]) for busy in (False, True))
        print(f"| {name} | {alone:.1f} | {alone / base:.2f} | {beside:.1f} | {beside / alone:.2f} |")


if __name__ == "__main__":
    main()
