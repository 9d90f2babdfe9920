"""The project's own example sessions: short coding tasks, written as genuine Claude Code JSONL.

They are made up by a seeded generator, so that tests and `sdft demo` need nobody's real sessions. Among them: reasoning
blocks, parallel calls, rewound prompts (a fork), meta lines and echoes of local commands.
"""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NOUNS = (
    *("parser", "cache", "router", "queue", "config", "token", "invoice", "session", "user", "billing"),
    *("metric", "worker", "loader", "index", "search", "graph", "ledger", "report", "export", "upload"),
)
VERBS = ("load", "save", "parse", "build", "flush", "merge", "render", "fetch", "check", "update", "delete", "resolve")
FOLDERS = ("src", "app", "lib", "pkg")


@dataclass
class _LineWriter:
    """Writes the lines of one session; each line's parent is the line before, unless one is given."""

    rng: random.Random
    session: str
    lines: list[dict[str, Any]] = field(default_factory=list)
    last: str | None = None
    seconds: int = 0

    def _uuid(self) -> str:
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))

    def _line(self, kind: str, body: dict[str, Any], parent: str | None = None) -> str:
        self.seconds += self.rng.randrange(1, 9)
        name = self._uuid()
        self.lines.append(
            {
                "parentUuid": parent or self.last,
                "isSidechain": False,
                "userType": "external",
                "cwd": "/app",
                "sessionId": self.session,
                "version": "2.1.37",
                "gitBranch": "main",
                "type": kind,
                **body,
                "uuid": name,
                "timestamp": f"2026-03-02T09:{self.seconds // 60 % 60:02d}:{self.seconds % 60:02d}.000Z",
            }
        )
        self.last = name
        return name

    def user(self, text: str, **extra: Any) -> str:
        return self._line("user", {"message": {"role": "user", "content": text}, **extra})

    def assistant(self, *blocks: dict[str, Any]) -> list[str]:
        """One API message: each block on a line of its own, all with the same `message.id`."""
        message_id = f"msg_{self.rng.getrandbits(96):024x}"
        base = {"model": "claude-example-1", "id": message_id, "type": "message", "role": "assistant"}
        return [
            self._line("assistant", {"message": {**base, "content": [block], "stop_reason": None}}) for block in blocks
        ]

    def think(self, text: str) -> dict[str, Any]:
        return {"type": "thinking", "thinking": text, "signature": f"{self.rng.getrandbits(64):016x}"}

    def call(self, name: str, **arguments: Any) -> dict[str, Any]:
        return {"type": "tool_use", "id": f"toolu_{self.rng.getrandbits(96):024x}", "name": name, "input": arguments}

    def result(self, call: dict[str, Any], text: str, parent: str | None = None) -> str:
        block = {"tool_use_id": call["id"], "type": "tool_result", "content": text}
        return self._line("user", {"message": {"role": "user", "content": [block]}}, parent)

    def use(self, thought: str, call: dict[str, Any], output: str) -> None:
        """Think, call a tool, get its result."""
        self.assistant(self.think(thought), call)
        self.result(call, output)

    def say(self, text: str) -> None:
        self.assistant({"type": "text", "text": text})


@dataclass(frozen=True)
class _Names:
    function: str
    path: str
    folder: str
    topic: str
    other: str


def _names(rng: random.Random) -> _Names:
    topic, other = rng.sample(NOUNS, 2)
    folder = rng.choice(FOLDERS)
    return _Names(f"{rng.choice(VERBS)}_{topic}", f"{folder}/{other}.py", folder, topic, other)


def _find(w: _LineWriter, n: _Names) -> None:
    w.user(w.rng.choice([f"Where is {n.function} defined?", f"Find the definition of {n.function}."]))
    search = w.call("Grep", pattern=f"def {n.function}")
    w.use("I search for it.", search, f"{n.path}:{w.rng.randrange(5, 200)}:def {n.function}(x):")
    w.say(f"`{n.function}` is defined in `{n.path}`.")


def _test(w: _LineWriter, n: _Names) -> None:
    count = w.rng.randrange(3, 60)
    w.user(w.rng.choice(["Run the tests.", "Do the tests pass?", f"Run the tests for {n.other}."]))
    w.use("I run the tests.", w.call("Bash", command="pytest -q"), f"{count} passed in 0.{w.rng.randrange(10, 99)}s")
    w.say(f"All {count} tests pass.")


def _change(w: _LineWriter, n: _Names) -> None:
    old = w.rng.randrange(2, 90)
    w.user(f"Change the timeout in {n.path} from {old} to {old * 2}.")
    w.use("I read the file first.", w.call("Read", file_path=n.path), f"TIMEOUT = {old}")
    edit = w.call("Edit", file_path=n.path, old_string=f"TIMEOUT = {old}", new_string=f"TIMEOUT = {old * 2}")
    w.use("Now I change it.", edit, "The file has been updated.")
    w.say(f"The timeout in `{n.path}` is now {old * 2}.")


def _explain(w: _LineWriter, n: _Names) -> None:
    w.user(w.rng.choice([f"What does {n.path} do?", f"Explain {n.path}.", f"Show me {n.path}."]))
    w.use("I read it.", w.call("Read", file_path=n.path), f"def {n.function}(x):\n    return x")
    w.say(f"`{n.path}` has one function, `{n.function}`.")


def _list(w: _LineWriter, n: _Names) -> None:
    w.user(w.rng.choice([f"List the files in {n.folder}.", f"What is in the {n.folder} folder?"]))
    w.use("I list it.", w.call("Bash", command=f"ls {n.folder}"), f"{n.topic}.py\n{n.other}.py")
    w.say(f"It holds `{n.topic}.py` and `{n.other}.py`.")


def _create(w: _LineWriter, n: _Names) -> None:
    w.user(f"Create {n.path} with a function {n.function} that returns 1.")
    write = w.call("Write", file_path=n.path, content=f"def {n.function}():\n    return 1\n")
    w.use("I write it.", write, "File created.")
    w.say(f"I created `{n.path}`.")


def _parallel(w: _LineWriter, n: _Names) -> None:
    """Two calls in one message; their results come on lines of their own, each under its call's line."""
    second = f"{n.folder}/{n.topic}.py"
    w.user(f"Show me {n.path} and {second}.")
    calls = [w.call("Read", file_path=n.path), w.call("Read", file_path=second)]
    _, *parents = w.assistant(w.think("I read both at once."), *calls)
    for call, parent, name in zip(calls, parents, (n.other, n.topic), strict=True):
        w.result(call, f"{name.upper()} = 1", parent)
    w.say(f"Each file sets one constant: `{n.other.upper()}` and `{n.topic.upper()}`.")


def _rewound(w: _LineWriter, n: _Names) -> None:
    """The user asks, gets an answer, goes back, and asks for something else: a fork."""
    w.user("<local-command-caveat>The lines below come from local commands.</local-command-caveat>", isMeta=True)
    root = w.user("<local-command-stdout>main</local-command-stdout>")
    w.user(f"Delete {n.path}.")
    w.use("I remove it.", w.call("Bash", command=f"rm {n.path}"), "")
    w.say(f"I deleted `{n.path}`.")
    w.last = root
    _explain(w, n)


TASKS: tuple[Callable[[_LineWriter, _Names], None], ...] = (_find, _test, _change, _explain, _list, _create)
SPECIAL: tuple[Callable[[_LineWriter, _Names], None], ...] = (_parallel, _rewound)


def example_session(index: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return the lines of one example session; every twelfth is a special one (parallel calls, a rewound prompt)."""
    rng = random.Random(f"{seed}:{index}")
    writer = _LineWriter(rng, str(uuid.UUID(int=rng.getrandbits(128), version=4)))
    special, which = divmod(index, 12)
    task = SPECIAL[special % len(SPECIAL)] if which == 11 else TASKS[index % len(TASKS)]
    task(writer, _names(rng))
    snapshot = {
        "type": "file-history-snapshot",
        "messageId": writer.lines[0]["uuid"],
        "snapshot": {},
        "isSnapshotUpdate": False,
    }
    return [snapshot, *writer.lines]


def write_examples(folder: Path, count: int = 60, seed: int = 0) -> list[Path]:
    """Write `count` example sessions as `.jsonl` files; the same seed writes the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(count):
        lines = example_session(index, seed)
        path = folder / f"{index:03d}-{lines[-1]['sessionId'][:8]}.jsonl"
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        paths.append(path)
    return paths
