"""Seconds and peak memory of `sdft merge`: the whole command, and the merge with its certificate of tensors alone.

    python -m benchmarks.bench_merge RUN [--repetitions 3] [--json FILE]

Each row is a process of its own, the two kinds in turn. The whole command loads base and checkpoint to compare what
they do, the other one reads and writes tensor by tensor. Megabytes are 10^6 bytes, Python and its libraries included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TENSORS = """
import sys
from pathlib import Path
import torch
from sdft_cli.engine.models.disk_names import DiskNames
from sdft_cli.engine.models.names import local_folder, resolve_model
from sdft_cli.run_folder import read_run
from sdft_cli.merging.tensor_check import certify
from sdft_cli.merging.adapter import Adapter
from sdft_cli.merging.weights import copy_companions, merge_weights
run, out = read_run(Path(sys.argv[1])), Path(sys.argv[2])
base = local_folder(resolve_model(run.config.model), run.config.revision)
names = DiskNames(base)
out.mkdir()
merge_weights(base, Adapter(run.adapter, names), out, names=names)
copy_companions(base, out)
assert not certify(base, run.adapter, out, torch.bfloat16, names).failures
"""


def measured(command: list[str]) -> dict[str, float]:
    """Run a process; return its seconds and peak memory in MB."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(command[:5])} failed with exit code {os.waitstatus_to_exitcode(status)}")
    return {"seconds": time.perf_counter() - start, "peak_mb": usage.ru_maxrss * 1024 / 1e6}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a trained run whose base is a folder or in the cache")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {"sdft merge --bf16": [], "tensors alone": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.repetitions):
            whole, alone = Path(folder) / f"whole-{number}", Path(folder) / f"alone-{number}"
            command = [sys.executable, "-m", "sdft_cli", "merge", str(options.run), "--bf16", "--out", str(whole)]
            found["sdft merge --bf16"].append(measured(command))
            found["tensors alone"].append(measured([sys.executable, "-c", TENSORS, str(options.run), str(alone)]))
        largest = max(path.stat().st_size for path in (Path(folder) / "whole-0").glob("*.safetensors")) / 1e6
    document: dict[str, Any] = {"largest_file_mb": largest, "runs": found}
    print(f"largest file {largest:.0f} MB; 1.3 times that and 1,000 MB: {1.3 * largest + 1000:,.0f} MB")
    for name, rows in found.items():
        seconds, peaks = [row["seconds"] for row in rows], [row["peak_mb"] for row in rows]
        print(
            f"{name:18} {statistics.median(seconds):5.1f} s ({min(seconds):.1f} to {max(seconds):.1f}), "
            f"peak {statistics.median(peaks):,.0f} MB ({min(peaks):,.0f} to {max(peaks):,.0f})"
        )
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
