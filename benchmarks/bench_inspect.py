"""Time `sdft inspect` on a made-up dataset of 300 MB of sessions: to the first byte of output, and to the last.

    python -m benchmarks.bench_inspect

The text is made of random words, which compress less than real sessions. Each view is a process of its own, as a user
starts it, with its output in a pipe. The dataset lies in a temporary folder and is removed; it was just written, so its
files are in the page cache. The prompts of the record need the tokenizer of smollm2-135m.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from sdft_cli.engine.models.names import resolve_model
from sdft_cli.prompts.chat import prompts_for, template_facts
from sdft_cli.records import Message, RecordRow, Rejection, Session, ToolCall, ToolSchema, write_dataset
from sdft_cli.records.types import record_id_of

TURNS = 60
"""Assistant turns of a session: each a call, with a long result."""
SESSION = 600_000
"""Characters of a session, about."""
RARE = "a text that only the last session holds"
MODEL = "smollm2-135m"


def made_up(names: list[str]) -> Iterator[Session]:
    """Yield a session for each name."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz_", k=rng.randint(2, 12))) for _ in range(50_000)]
    tool = ToolSchema("Bash", "Run a command.", '{"type": "object", "properties": {"command": {"type": "string"}}}')
    for name in names:
        messages = [Message("user", " ".join(rng.choices(words, k=60)))]
        for turn in range(TURNS):
            call = ToolCall(f"c{turn}", "Bash", f'{{"command": "{" ".join(rng.choices(words, k=10))}"}}')
            messages.append(Message("assistant", " ".join(rng.choices(words, k=40)), (call,)))
            messages.append(Message("tool", " ".join(rng.choices(words, k=1200)), tool_call_id=call.id, name="Bash"))
        if name == names[-1]:
            messages.append(Message("user", RARE))
        yield Session(name, tuple(messages), (tool,), name, {"models": ["made-up"]})


def write(folder: Path, megabytes: int) -> list[str]:
    """Write the dataset, its first turns as records and the others as dropped; return the names of the sessions."""
    prompts = prompts_for(resolve_model(MODEL), "again")
    rng = random.Random(1)
    names = ["".join(rng.choices("0123456789abcdef", k=32)) for _ in range(megabytes * 1_000_000 // SESSION + 1)]
    rows, rejected = [], []
    for name in names:
        for turn in range(1, 2 * TURNS, 2):
            record = record_id_of(name, turn)
            if turn == 1:
                rows.append(RecordRow(record, name, turn, 9000, 9900, 80, True))
            else:
                rejected.append(Rejection(record, name, turn, "over_prompt_cap", "", 9000, 9900, 80))
    funnel = {"turns": len(rows) + len(rejected), "train": len(rows), "validation": 0}
    manifest = {
        "config": {"model": MODEL},
        "funnel": {**funnel, "kept": len(rows), "sessions": len(names), "rejected": {"over_prompt_cap": len(rejected)}},
        "fingerprint": prompts.fingerprint(),
        "teacher_template": prompts.teacher.name,
        "teacher_text": prompts.teacher.text,
        **template_facts(prompts),
    }
    write_dataset(folder, made_up(names), {"train": rows, "validation": []}, rejected, manifest)
    return names


def timed(*arguments: str) -> tuple[float, float, int]:
    """Run `sdft inspect`; return seconds to the first byte and to the end, and the bytes of output."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "sdft_cli", "inspect", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        size = len(process.stdout.read(1))
        first = time.perf_counter() - start
        size += len(process.stdout.read())
    if process.returncode:
        raise SystemExit(f"sdft inspect {' '.join(arguments)} ended with {process.returncode}")
    return first, time.perf_counter() - start, size


def main() -> None:
    """Run the benchmark and print a table: the best of some runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--times", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "dataset"
        names = write(folder, arguments.megabytes)
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{len(names)} sessions of about {SESSION:,} characters; {size / 1e6:.0f} MB on disk\n")
        views = {
            "the list": (),
            "the list, --limit 20": ("--limit", "20"),
            "a session": (names[len(names) // 2][:8],),
            "a record": (f"{names[len(names) // 2]}/1",),
            "--rejected": ("--rejected",),
            "--rejected --limit 20": ("--rejected", "--limit", "20"),
            "--search, found in the last session": ("--search", RARE),
            "--search, found everywhere": ("--search", "the", "--limit", "1000"),
        }
        print("| view | first byte, s | last byte, s | output, kB |\n| --- | ---: | ---: | ---: |")
        for what, given in views.items():
            runs = [timed(str(folder), *given) for _ in range(arguments.times)]
            first, last = min(run[0] for run in runs), min(run[1] for run in runs)
            print(f"| {what} | {first:.2f} | {last:.2f} | {runs[0][2] / 1e3:.0f} |", flush=True)


if __name__ == "__main__":
    main()
