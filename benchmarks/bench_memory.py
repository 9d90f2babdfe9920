"""Peak memory and disk of `sdft prepare` on sessions repeated to a given size.

    python -m benchmarks.bench_memory SESSIONS [--megabytes 300] [--workers 1] [--json FILE]

Every copy gets ids and a first prompt of its own, so that no copy is a resumed session or a duplicate. The same command
on two short sessions gives the memory of Python, libraries and tokenizer, which is subtracted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sdft_cli.traces.examples import write_examples

UUID = re.compile(rb"[0-9a-f]{8}(?=-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})")
PROMPT = re.compile(rb'"role":\s*"user",\s*"content":\s*"')


def copy_of(data: bytes, number: int) -> bytes:
    """Return a session file with other ids and another beginning of its prompts."""
    salt = str(number).encode()
    data = UUID.sub(lambda m: hashlib.sha256(salt + m[0]).hexdigest()[:8].encode(), data)
    return PROMPT.sub(lambda m: m[0] + b"(copy " + salt + b") ", data)


def repeat(sessions: Path, folder: Path, size: int) -> int:
    """Fill a folder with copies of sessions up to `size` bytes; return the bytes written."""
    folder.mkdir()
    written, number = 0, 0
    files = sorted(sessions.glob("*.jsonl"))
    while written < size:
        for path in files:
            data = copy_of(path.read_bytes(), number)
            (folder / f"{number:04d}-{path.name}").write_bytes(data)
            written += len(data)
        number += 1
    return written


def peak(source: Path, out: Path, workers: int) -> tuple[float, float]:
    """Run `sdft prepare` as a process; return its peak memory in MB and its seconds."""
    code = (
        "import resource, sys\nfrom sdft_cli.cli.main import app\n"
        "try:\n    app(sys.argv[1:])\nfinally:\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)\n"
    )
    options = ["--model", "smollm2-135m", "--out", str(out), "--workers", str(workers), "--json"]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, "prepare", str(source), *options], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return int(done.stderr.split()[-1]) / 1024, time.perf_counter() - start


def main() -> None:
    """Run the benchmark and print its numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sessions", type=Path)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        written = repeat(arguments.sessions, folder / "many", arguments.megabytes * 1_000_000)
        write_examples(folder / "few", 2)
        base, _ = peak(folder / "few", folder / "small", 1)
        memory, seconds = peak(folder / "many", folder / "big", arguments.workers)
        disk = sum(path.stat().st_size for path in (folder / "big").iterdir())
        funnel: dict[str, Any] = json.loads((folder / "big" / "manifest.json").read_text())["funnel"]
    result = {
        "input_MB": written / 1e6,
        "sessions": funnel["sessions"],
        "turns": funnel["turns"],
        "kept": funnel["kept"],
        "workers": arguments.workers,
        "seconds": seconds,
        "MB_per_s": written / 1e6 / seconds,
        "peak_MB": memory,
        "base_MB": base,
        "peak_above_base_MB": memory - base,
        "dataset_MB": disk / 1e6,
        "dataset_share_of_input": disk / written,
    }
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
