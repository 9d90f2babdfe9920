"""Peak memory of `sdft prepare`, over that of its libraries, on a folder of made-up sessions of N GB.

    python -m benchmarks.bench_prepare_memory [--gb 2] [--workers 1] [--kind folder|session|rows] [--parts 4] [--keep DIR]

Sessions are Claude Code's lines whose text is drawn for each of them alone, so that nothing is a copy: `folder` has
sessions of about 0.5 MB, `session` one session of N GB, `rows` one file of N GB with conversations as rows. Each number
is the `ru_maxrss` of a process of its own: of the libraries (all that prepare imports, and the tokenizer), and of
prepare. With workers, theirs are added as Linux counts shared pages (PSS, looked at once a second).

`--parts P` prepares P parts of the folder alone, too, and compares: the sessions, records and rejections of the whole
are those of the parts, one after the other, but for what is decided over a whole source: which sessions are held out,
which turns are copies across parts, and which of the built-in tools were observed (`--tools all` takes that out, and is
what both sides get).
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SYLLABLES = [a + b for a in "bdfghklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "is")]
SESSION_BYTES, RESULT_WORDS = 500_000, (50, 1_500)
ROOM = 30_000
"""Characters of a context after which a session is compacted, so that its turns fit the caps."""


def text(rng: random.Random, words: int) -> str:
    """Return lines of made-up words."""
    made = ["".join(rng.choices(SYLLABLES, k=rng.choice((1, 2, 2, 3)))) for _ in range(words)]
    return "\n".join(" ".join(made[i : i + 12]) for i in range(0, words, 12))


class _Writer:
    """Writes one Claude Code session, line by line."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.parent = rng, None
        self.session = str(uuid.UUID(int=rng.getrandbits(128), version=4))
        self.calls = 0

    def line(self, role: str, content: Any) -> str:
        number = str(uuid.UUID(int=self.rng.getrandbits(128), version=4))
        message: dict[str, Any] = {"role": role, "content": content}
        if role == "assistant":
            message |= {"id": f"msg_{number[:13]}", "model": "claude-made-up"}
        common = {"uuid": number, "parentUuid": self.parent, "sessionId": self.session, "cwd": "/home/made/up"}
        self.parent = number
        return json.dumps({"type": role, "message": message, "version": "2.1.0", **common}) + "\n"

    def errand(self) -> Iterator[str]:
        """Ask for something, have it looked up, and answer."""
        self.calls += 1
        name = f"toolu_{self.calls}"
        call = {"type": "tool_use", "id": name, "name": "Read", "input": {"file_path": f"/src/{text(self.rng, 1)}.py"}}
        yield self.line("user", text(self.rng, 20))
        yield self.line("assistant", [{"type": "text", "text": text(self.rng, 30)}, call])
        found = text(self.rng, self.rng.randint(*RESULT_WORDS))
        yield self.line("user", [{"type": "tool_result", "tool_use_id": name, "content": found}])
        yield self.line("assistant", [{"type": "text", "text": text(self.rng, 60)}])


def claude_code(rng: random.Random, size: int) -> Iterator[str]:
    """Yield the lines of one session of about so many bytes, compacted whenever its context is full."""
    writer = _Writer(rng)
    written = context = 0
    while written < size:
        if context > ROOM:
            writer.parent, context = None, 0
            yield writer.line("user", "The conversation so far, in short: " + text(rng, 40))
        for line in writer.errand():
            yield line
            written += len(line)
            context += len(line)


def rows(rng: random.Random, size: int) -> Iterator[str]:
    """Yield conversations as rows, so many bytes together."""
    written = 0
    while written < size:
        turns = [{"role": ("user", "assistant")[i % 2], "content": text(rng, rng.randint(20, 800))} for i in range(12)]
        line = json.dumps({"messages": turns}) + "\n"
        written += len(line)
        yield line
