"""`sdft prepare --engine ray` with 2 workers against `--workers 2`: the same bytes, and in what time?

    python -m benchmarks.bench_ray [--mb 60] [--rounds 3] [--workers 2]

Both prepare the same made-up sessions (`bench_prepare_memory`) as whole commands, in turn, so that the start of Ray on
this machine counts. Throughput is input by the median of the seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.bench_prepare_memory import make


def prepare(source: Path, out: Path, options: list[str]) -> float:
    """Run `sdft prepare` as a process; return its seconds."""
    command = [sys.executable, "-m", "sdft_cli", "prepare", str(source), "--out", str(out), "--overwrite", "--json"]
    start = time.perf_counter()
    done = subprocess.run([*command, "--model", "smollm2-135m", *options], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.perf_counter() - start


def digest(folder: Path) -> list[str]:
    """Return the hashes of a folder's files."""
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())]


def main() -> None:
    """Run the benchmark and print its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    engines = {"local": ["--workers", str(arguments.workers)]}
    engines["ray"] = [*engines["local"], "--engine", "ray"]
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        written = make(folder / "sessions", "folder", arguments.mb * 1_000_000, 0)
        for _ in range(arguments.rounds):
            for name, options in engines.items():
                seconds[name].append(prepare(folder / "sessions", folder / name, options))
        same = digest(folder / "local") == digest(folder / "ray")
    rates = {name: written / 1e6 / statistics.median(some) for name, some in seconds.items()}
    result = {
        "input_MB": written / 1e6,
        "workers": arguments.workers,
        "seconds": seconds,
        "MB_per_s": rates,
        "ray_to_local": rates["ray"] / rates["local"],
        "same_bytes": same,
    }
    print(json.dumps(result, indent=2))
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
