"""Peak memory of `sdft prepare`, above that of its libraries, on N GB of made-up sessions.

    python -m benchmarks.bench_prepare_memory [--gb 2] [--kind folder] [--workers 1] [--parts 0] [--folder DIR]

The text of each session is drawn for it alone, so nothing is a copy. `--kind folder`: Claude Code sessions of about
300 KB, a third of it seen by the model; `session`: one Claude Code session of N GB; `rows`: one file of N GB with a
conversation in each line. Peaks are of all processes of the command together, shared pages counted once (PSS, looked at
once a second), and `ru_maxrss` of its main process. The same command on one short session is what libraries and
tokenizer take.

`--parts P` (with `folder`) prepares P parts of the folder alone, too, and says whether sessions, records and rejections
of the whole are those of the parts, one part after the other. Two things are decided over a whole source and left out:
which sessions are held out, and which built-in tools are offered (`--tools all` on both sides). That no turn is a copy
of one in another part is a matter of the text.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

SYLLABLES = [a + b for a in "bdfghklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "is")]
SESSION_BYTES, FILE_WORDS = 300_000, (200, 4_000)


class Text:
    """Draws text of made-up words."""

    def __init__(self, seed: str) -> None:
        self.rng = random.Random(seed)

    def __call__(self, words: int) -> str:
        made = self.rng.choices(VOCABULARY, k=words)
        return "\n".join(" ".join(made[i : i + 12]) for i in range(0, words, 12))

    def name(self) -> str:
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))


_words = random.Random(0)
VOCABULARY = ["".join(_words.choices(SYLLABLES, k=_words.choice((1, 2, 2, 3)))) for _ in range(4_000)]


class Written:
    """Writes the lines of one Claude Code session, with what the model did not see, too: results a second time, whole
    files before an edit, thoughts and their signatures, counts of tokens."""

    def __init__(self, text: Text) -> None:
        self.text, self.session, self.parent = text, text.name(), ""
        self.calls = self.context = 0

    def line(self, role: str, content: Any, **more: Any) -> str:
        number = self.text.name()
        message: dict[str, Any] = {"role": role, "content": content}
        if role == "assistant":
            usage = {"input_tokens": 14_000 + round(0.44 * self.context), "output_tokens": 50}
            message |= {"id": f"msg_{number}", "model": "claude-made-up", "usage": usage}
        common = {"uuid": number, "parentUuid": self.parent or None, "sessionId": self.session, "cwd": "/home/made/up"}
        self.parent = number
        return json.dumps({"type": role, "message": message, "version": "2.1.0", **common, **more}) + "\n"

    def said(self, text: str) -> str:
        """Return a text that the model sees from now on."""
        self.context += len(text)
        return text

    def errand(self) -> list[str]:
        """Ask for something; look it up or change it; answer."""
        self.calls += 1
        text, name, path = self.text, f"toolu_{self.calls}", f"/src/{self.text(1)}.py"
        file, edits = text(text.rng.randint(*FILE_WORDS)), self.calls % 2 == 0
        arguments = {"file_path": path, **({"old_string": text(30), "new_string": text(30)} if edits else {})}
        call = {"type": "tool_use", "id": name, "name": "Edit" if edits else "Read", "input": arguments}
        thought = {"type": "thinking", "thinking": text(80), "signature": "c2lnbmF0dXJl" * 50}
        shown = text(120) if edits else file
        result = {"filePath": path, "originalFile": file} if edits else {"file": {"filePath": path, "content": file}}
        ask = self.line("user", self.said(text(20)))
        look = self.line("assistant", [thought, {"type": "text", "text": self.said(text(30))}, call])
        block = {"type": "tool_result", "tool_use_id": name, "content": self.said(shown)}
        found = self.line("user", [block], toolUseResult=result)
        return [ask, look, found, self.line("assistant", [{"type": "text", "text": self.said(text(60))}])]


def claude_code(text: Text, size: int) -> Iterator[str]:
    """Yield the lines of one Claude Code session of about so many bytes."""
    writer, written = Written(text), 0
    while written < size:
        lines = writer.errand()
        yield from lines
        written += sum(map(len, lines))


def rows(text: Text, size: int) -> Iterator[str]:
    """Yield conversations as lines, so many bytes together."""
    written = 0
    while written < size:
        turns = [{"role": ("user", "assistant")[i % 2], "content": text(text.rng.randint(20, 800))} for i in range(12)]
        line = json.dumps({"messages": turns}) + "\n"
        written += len(line)
        yield line


def make(folder: Path, kind: str, size: int, parts: int) -> int:
    """Write sessions of `size` bytes, in as many folders as there are parts; return the bytes written."""
    if kind != "folder":
        folder.mkdir(parents=True)
        with (folder / "made-up.jsonl").open("w") as file:
            return sum(map(file.write, {"session": claude_code, "rows": rows}[kind](Text(kind), size)))
    written = number = 0
    while written < size:
        path = folder / f"part-{written * max(1, parts) // size}" / f"{number:07}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        written += path.write_text("".join(claude_code(Text(str(number)), SESSION_BYTES)))
        number += 1
    return written


def _tree(root: int) -> list[int]:
    """Return a process and all below it."""
    found = [root]
    for pid in found:
        with suppress(OSError):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                found += map(int, (thread / "children").read_text().split())
    return found


def _memory(root: int) -> float:
    """Return the memory of a process and all below it in MB, shared pages counted once (PSS)."""
    total = 0
    for pid in _tree(root):
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return total / 1024


def peak(source: Path, out: Path, options: list[str]) -> dict[str, float]:
    """Run `sdft prepare` as a process; return its peak memory in MB and its seconds."""
    code = (
        "import resource, sys\nfrom sdft_cli.cli.main import app\n"
        "try:\n    app(sys.argv[1:])\nfinally:\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", code, "prepare", str(source), "--out", str(out), "--json", *options]
    start, most = time.perf_counter(), 0.0
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, text=True)
        while process.poll() is None:
            most = max(most, _memory(process.pid))
            time.sleep(1)
        said.seek(0)
        errors = said.read()
    if process.returncode:
        raise SystemExit(errors)
    seconds = time.perf_counter() - start
    return {"all_MB": most, "main_MB": int(errors.split()[-1]) / 1024, "seconds": seconds}


def _read(dataset: Path, table: str) -> Iterator[dict[str, Any]]:
    for batch in pq.ParquetFile(dataset / f"{table}.parquet").iter_batches(batch_size=64):
        yield from batch.to_pylist()


def content(dataset: Path) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """Return hashes of a dataset's rows: sessions in their order, records and rejections by name."""

    def digest(row: dict[str, Any]) -> str:
        return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()

    records = {row["record_id"]: digest(row) for split in ("train", "validation") for row in _read(dataset, split)}
    rejected = {row["record_id"]: digest(row) for row in _read(dataset, "rejected")}
    return [digest(row) for row in _read(dataset, "sessions")], records, rejected


def same_as_parts(whole: Path, parts: list[Path]) -> dict[str, bool]:
    """Say whether a dataset holds what those of its parts hold, one after the other."""
    one, several = content(whole), [content(part) for part in parts]
    return {
        "sessions": one[0] == [row for part in several for row in part[0]],
        "records": one[1] == {name: row for part in several for name, row in part[1].items()},
        "rejections": one[2] == {name: row for part in several for name, row in part[2].items()},
    }


def main() -> None:
    """Run the benchmark and print its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--kind", choices=("folder", "session", "rows"), default="folder")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--parts", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work; deleted in the end")
    arguments = parser.parse_args()
    options = ["--model", "smollm2-135m", "--tools", "all", "--workers", str(arguments.workers)]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        folder = Path(scratch)
        written = make(folder / "sessions", arguments.kind, round(arguments.gb * 1e9), arguments.parts)
        make(folder / "few", "folder", 1, 0)
        base = peak(folder / "few", folder / "small", options)
        whole = peak(folder / "sessions", folder / "whole", options)
        funnel = json.loads((folder / "whole" / "manifest.json").read_text())["funnel"]
        result: dict[str, Any] = {
            "input_MB": written / 1e6,
            **{name: funnel[name] for name in ("sessions", "turns", "kept")},
            "workers": arguments.workers,
            "seconds": whole["seconds"],
            "libraries_MB": base["all_MB"],
            "peak_MB": whole["all_MB"],
            "above_libraries_MB": whole["all_MB"] - base["all_MB"],
            "main_process_above_libraries_MB": whole["main_MB"] - base["main_MB"],
        }
        print(json.dumps(result, indent=2), flush=True)
        if arguments.parts:
            names = sorted((folder / "sessions").iterdir())
            for part in names:
                peak(part, folder / f"of-{part.name}", options)
            same = same_as_parts(folder / "whole", [folder / f"of-{part.name}" for part in names])
            print(json.dumps({"parts": len(names), "same_as_the_parts": same}, indent=2))


if __name__ == "__main__":
    main()
