"""Which requests a session has, and a folder of sessions.

Twelve consecutive sessions have the twelve shapes of their subset, in a seeded order; 24 share one deck of errands, so
that all kinds turn up about equally often. `all` has every kind of request, and about three turns in five call a tool;
`few` has so few kinds that a very small model learns them in minutes.
"""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from sdft_cli.traces.examples.chains import CHAINS
from sdft_cli.traces.examples.commands import COMMANDS
from sdft_cli.traces.examples.errands import READINGS, SEARCHES, WRITINGS, Errand
from sdft_cli.traces.examples.lines import LineWriter
from sdft_cli.traces.examples.talk import AFTER, AGAIN, CONCEPTS, DID, HOW_TO, TALKS, Talk
from sdft_cli.traces.examples.vocabulary import Names, draw_names, fill, sentence

ERRANDS = (*SEARCHES, *READINGS, *WRITINGS, *COMMANDS)
Kind = TypeVar("Kind")
Request = Talk | tuple[Errand, ...] | str
"""Talk, errands to run one after the other, or the name of a special request."""

SHAPES = (
    ("talk",),
    ("talk",),
    ("talk", "one one"),
    ("talk", "chain one"),
    ("chain", "after"),
    ("one",),
    ("one", "one one"),
    ("one one",),
    ("chain one",),
    ("one chain",),
    ("chain",),
    ("special",),
)
"""The requests of a session; of a request, the errands that it joins: of one call (`one`) or several (`chain`)."""
SPECIAL = ("parallel", "rewound")
FEW_SHAPES = (*(("talk",), ("talk", "one"), ("one", "after")) * 2, *(("one",),) * 6)
Subset = Literal["all", "few"]


@dataclass(frozen=True)
class _Kinds:
    """What sessions of a subset are made of. `wordings`: how many ways to say an answer are used; None: all."""

    shapes: Sequence[tuple[str, ...]]
    errands: Sequence[Errand]
    chains: Sequence[Errand]
    talks: Sequence[Talk]
    after: Sequence[Talk]
    wordings: int | None = None


def _asked_for(name: str) -> Errand:
    """Return the errand whose first order begins so."""
    (found,) = [errand for errand in ERRANDS if errand.orders[0].startswith(name)]
    return found


KINDS: dict[Subset, _Kinds] = {
    "all": _Kinds(SHAPES, ERRANDS, CHAINS, TALKS, AFTER),
    "few": _Kinds(
        FEW_SHAPES,
        [_asked_for(name) for name in ("read {doc}", "list {folder}", "write port =")],
        (),
        TALKS[:1],
        AFTER[:1],
        wordings=1,
    ),
}
"""`few`: one errand for each of Read, Bash and Write, greetings and thanks; the expert says a thing in one way."""
BLOCK = 2 * len(SHAPES)
USUAL = 0.75
"""Share of the errands that end in their first, usual way."""

FRAMES = ("{}.", "Please {}.", "Can you {}?", "Could you {}?", "I would like you to {}.", "{}, please.")
JOINS = (
    "{}, then {}.",
    "{} and then {}.",
    "First {}, then {}.",
    "Please {}, and after that {}.",
    "{}. When that is done, {}.",
    "Two things: {}, and {}.",
)
THOUGHTS = {
    "Bash": ("A command tells.", "I run it.", "The shell can do that."),
    "Read": ("I read it.", "I look into the file first.", "The file will tell."),
    "Edit": ("Now I change it.", "One line has to change.", "I edit that line."),
    "Write": ("I write it.", "The file is short.", "A new file, then."),
    "Glob": ("I look for the name.", "A pattern finds it.", "I list what matches."),
    "Grep": ("I search for it.", "A search finds it.", "I look where it stands."),
}
PAIRS = ("Show me {path} and {path2}.", "Read {path} and {path2}.", "What is in {path} and {path2}?")
BOTH = (
    "`{path}` defines `{function}`, `{path2}` defines `{function2}`.",
    "One function each: `{function}` in `{path}` and `{function2}` in `{path2}`.",
    "`{function}` is in `{path}`, `{function2}` in `{path2}`.",
)
DELETIONS = ("Delete {path}.", "Remove {path}, please.", "Please delete the file {path}.", "{path} can go, delete it.")


def _deck(rng: random.Random, kinds: Sequence[Kind]) -> Iterator[Kind]:
    """Deal all kinds in a random order, again and again."""
    while True:
        yield from rng.sample(kinds, len(kinds))


@lru_cache(maxsize=64)
def _block(seed: int, number: int, subset: Subset) -> tuple[tuple[Request, ...], ...]:
    """Return the requests of 24 consecutive sessions."""
    rng, kinds = random.Random(f"{seed}:block {number}"), KINDS[subset]
    shapes = [*rng.sample(kinds.shapes, BLOCK // 2), *rng.sample(kinds.shapes, BLOCK // 2)]
    decks: dict[str, Iterator[Any]] = {
        "one": _deck(rng, kinds.errands),
        "chain": _deck(rng, kinds.chains),
        "talk": _deck(rng, kinds.talks),
        "after": _deck(rng, kinds.after),
        "special": iter(SPECIAL),
    }

    def dealt(request: str) -> Request:
        if request in ("talk", "after", "special"):
            found: Request = next(decks[request])
            return found
        return tuple(next(decks[kind]) for kind in request.split())

    return tuple(tuple(dealt(request) for request in shape) for shape in shapes)


class _Session:
    """Plays the requests of one session and writes them down."""

    def __init__(self, rng: random.Random, wordings: int | None) -> None:
        self.rng = rng
        self.wordings = wordings
        self.writer = LineWriter(rng, str(uuid.UUID(int=rng.getrandbits(128), version=4)))
        self.calls: list[dict[str, Any]] = []

    def play(self, request: Request) -> None:
        if isinstance(request, Talk):
            self._talk(request)
        elif isinstance(request, str):
            {"parallel": self._parallel, "rewound": self._rewound}[request]()
        else:
            self._errands(request)

    def _pick(self, templates: Sequence[str], names: Names) -> str:
        return fill(self.rng.choice(templates), names)

    def _say(self, templates: Sequence[str], names: Names) -> str:
        return self._pick(templates[: self.wordings], names)

    def _talk(self, talk: Talk) -> None:
        names = draw_names(self.rng) | self._words()
        wish, by_hand = self.rng.choice(HOW_TO)
        names |= {"wish": fill(wish, names), "by_hand": fill(by_hand, names)}
        self.writer.user(self._pick(talk.asks, names))
        self.writer.say(self._say(talk.says, names))

    def _words(self) -> Names:
        """Return a concept, and what was done so far in words."""
        concept, meaning = self.rng.choice(list(CONCEPTS.items()))
        names = {"concept": concept, "Concept": sentence(concept), "meaning": meaning}
        if self.calls:
            did = [fill(DID[call["name"]], call["input"]) for call in self.calls]
            names["did"] = " and then ".join(did)
            names["again"] = fill(AGAIN[self.calls[-1]["name"]], self.calls[-1]["input"])
        return names

    def _errands(self, errands: Sequence[Errand]) -> None:
        """Ask for one errand or two; run their calls one after the other; say how all of them went."""
        names = [draw_names(self.rng) for _ in errands]
        self.writer.user(self._asked(errands, names))
        answers = [self._run(errand, some) for errand, some in zip(errands, names, strict=True)]
        self.writer.say(" ".join(answers))

    def _asked(self, errands: Sequence[Errand], names: Sequence[Names]) -> str:
        orders = [self._pick(errand.orders, some) for errand, some in zip(errands, names, strict=True)]
        if len(errands) > 1:
            return sentence(self.rng.choice(JOINS).format(*orders))
        framed = [sentence(frame.format(orders[0])) for frame in FRAMES]
        asked = [fill(ask, names[0]) for ask in errands[0].asks]
        return self.rng.choice(self.rng.choice((framed, asked)))

    def _run(self, errand: Errand, names: Names) -> str:
        """Make the calls of an errand; return what is to be said of it."""
        usual, *others = errand.endings
        ending = self.rng.choice(others) if others and self.rng.random() > USUAL else usual
        for (tool, arguments), output in zip(errand.steps, ending.outputs, strict=False):
            call = self.writer.call(tool, **{key: fill(value, names) for key, value in arguments.items()})
            self.writer.use(self.rng.choice(THOUGHTS[tool]), call, fill(output, names))
            self.calls.append(call)
        return self._say(ending.says, names)

    def _parallel(self) -> None:
        """Two calls in one message; their results come on lines of their own, each under its call's line."""
        names, writer = draw_names(self.rng), self.writer
        writer.user(self._pick(PAIRS, names))
        calls = [writer.call("Read", file_path=names[slot]) for slot in ("path", "path2")]
        _, *parents = writer.assistant(writer.think("I read both at once."), *calls)
        for call, parent, slot in zip(calls, parents, ("source", "source2"), strict=True):
            writer.result(call, names[slot], parent)
        writer.say(self._pick(BOTH, names))

    def _rewound(self) -> None:
        """The user asks, gets an answer, goes back, and asks for something else: a fork."""
        names, writer = draw_names(self.rng), self.writer
        writer.user(
            "<local-command-caveat>The lines below come from local commands.</local-command-caveat>", isMeta=True
        )
        root = writer.user("<local-command-stdout>main</local-command-stdout>")
        writer.user(self._pick(DELETIONS, names))
        writer.use("I remove it.", writer.call("Bash", command=fill("rm {path}", names)), "")
        writer.say(fill("I deleted `{path}`.", names))
        writer.last = root
        self._errands((self.rng.choice(ERRANDS),))


def example_session(index: int, seed: int = 0, subset: Subset = "all") -> list[dict[str, Any]]:
    """Return the lines of one example session; of twelve of all kinds, one has parallel calls or a rewound prompt."""
    session = _Session(random.Random(f"{seed}:{index}"), KINDS[subset].wordings)
    number, place = divmod(index, BLOCK)
    for request in _block(seed, number, subset)[place]:
        session.play(request)
    lines = session.writer.lines
    snapshot = {
        "type": "file-history-snapshot",
        "messageId": lines[0]["uuid"],
        "snapshot": {},
        "isSnapshotUpdate": False,
    }
    return [snapshot, *lines]


def write_examples(folder: Path, count: int = 60, seed: int = 0, subset: Subset = "all") -> list[Path]:
    """Write `count` example sessions as `.jsonl` files; the same seed writes the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(count):
        lines = example_session(index, seed, subset)
        path = folder / f"{index:03d}-{lines[-1]['sessionId'][:8]}.jsonl"
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        paths.append(path)
    return paths
