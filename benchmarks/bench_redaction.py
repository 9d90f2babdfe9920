"""Redaction measured: recall per kind, changed share of clean text, MB/s.

    python -m benchmarks.bench_redaction [--per-place 40] [--files 9000] [--json redaction.json]

Recall is counted on made-up secrets (`redaction_corpus`). Clean text is the example sessions and the Python files of
the installed packages; every find in those files is printed with its place, so that anyone can judge it. Speed is UTF-8
megabytes per second of processor time, one process, after the scanner is built.
"""

from __future__ import annotations

import argparse
import json
import random
import sysconfig
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.redaction_corpus import MAKERS, PLACES, leaks
from sdft_cli.records import Session
from sdft_cli.redaction.redactor import Redactor
from sdft_cli.traces.examples import write_examples
from sdft_cli.traces.source import read_source, resolve_source
from sdft_cli.traces.tools import with_tools

KEY = bytes(32)
PERSONAL = ("user_name", "email")


def recall(redactor: Redactor, per_place: int) -> dict[str, dict[str, int]]:
    """Count, for each kind, how many secrets were placed and how many were removed altogether."""
    result = {}
    for kind, make in MAKERS.items():
        rng, removed = random.Random(f"bench:{kind}"), 0
        for build in PLACES.values():
            for _ in range(per_place):
                case = make(rng)
                removed += not leaks(case, redactor.session(build(case.text), Counter()))
        result[kind] = {"placed": per_place * len(PLACES), "removed": removed}
    return result


def size_of(session: Session) -> int:
    """Return the UTF-8 bytes of messages and tools."""
    texts = [text for m in session.messages for text in (m.content, m.reasoning, *(c.arguments for c in m.tool_calls))]
    texts += [text for tool in session.tools for text in (tool.description, tool.parameters)]
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)


def sessions(redactor: Redactor, folder: Path) -> dict[str, Any]:
    """Redact the sessions of a folder; count messages that changed, kinds and speed."""
    found = with_tools(read_source(resolve_source(str(folder))).sessions, every_builtin=True)
    counts: Counter[str] = Counter()
    started = time.process_time()
    redacted = [redactor.session(session, counts) for session in found]
    seconds = time.process_time() - started
    before, after = ([message for session in some for message in session.messages] for some in (found, redacted))
    pairs = list(zip(before, after, strict=True))
    size = sum(map(size_of, found))
    return {
        "sessions": len(found),
        "messages": len(pairs),
        "changed_messages": sum(old is not new for old, new in pairs),
        "replacements": dict(counts),
        "MB": round(size / 1e6, 3),
        "MB_per_s": round(size / 1e6 / seconds, 1),
    }


def source_files(redactor: Redactor, count: int) -> dict[str, Any]:
    """Redact Python files of the installed packages, a seeded sample; list every place with anything but an e-mail."""
    root = Path(sysconfig.get_path("purelib"))
    files = sorted(path for path in root.rglob("*.py") if path.is_file())
    files = random.Random(0).sample(files, min(count, len(files)))
    changed: Counter[str] = Counter()
    places, size, seconds = [], 0, 0.0
    for path in files:
        text, counts = path.read_bytes().decode("utf-8", "replace"), Counter[str]()
        started = time.process_time()
        redactor.text(text, counts)
        seconds += time.process_time() - started
        size += len(text.encode())
        changed["any"] += bool(counts)
        changed["secret"] += bool(set(counts) - set(PERSONAL))
        changed.update(f"kind {kind}" for kind in counts)
        if set(counts) - {"email"}:
            places.append(f"{path.relative_to(root)}: {', '.join(sorted(counts))}")
    return {
        "files": len(files),
        "files_changed": changed["any"],
        "files_with_a_secret_kind": changed["secret"],
        "by_kind": {key.removeprefix("kind "): n for key, n in sorted(changed.items()) if key.startswith("kind ")},
        "places": places,
        "MB": round(size / 1e6, 1),
        "MB_per_s": round(size / 1e6 / seconds, 1),
    }


def main() -> None:
    """Measure, print tables, write JSON if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--per-place", type=int, default=40, help="secrets of each kind in each of the places")
    parser.add_argument("--files", type=int, default=9000, help="Python files of the installed packages")
    parser.add_argument("--sessions", type=Path, help="a folder of further sessions to measure")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    redactor = Redactor(KEY)
    redactor.text("build the scanner", Counter())
    result: dict[str, Any] = {"recall": recall(redactor, options.per_place)}
    with tempfile.TemporaryDirectory() as folder:
        write_examples(Path(folder), count=60)
        result["example sessions"] = sessions(redactor, Path(folder))
    if options.sessions:
        result["given sessions"] = sessions(redactor, options.sessions)
    result["source files"] = source_files(redactor, options.files)
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def show(result: dict[str, Any]) -> None:
    """Print the recall table and the other numbers."""
    console = Console(markup=False)
    table = Table("kind", "placed", "removed", "recall")
    for kind, row in result["recall"].items():
        table.add_row(kind, str(row["placed"]), str(row["removed"]), f"{row['removed'] / row['placed']:.2%}")
    console.print(table)
    for name in [key for key in result if key != "recall"]:
        console.print(f"{name}:")
        for key, value in result[name].items():
            console.print(f"  {key}: {value}" if key != "places" else "  places:\n    " + "\n    ".join(value))


if __name__ == "__main__":
    main()
