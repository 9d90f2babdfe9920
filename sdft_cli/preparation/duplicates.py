"""Copies: the same turn twice, sessions that share their beginning, and near copies across the split."""

from __future__ import annotations

import hashlib
import heapq
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from sdft_cli.preparation.split import joined
from sdft_cli.records import Message, Session

Sketched = tuple[str, Sequence[int]]
"""The id of a record and its sketch."""


def _message_bytes(message: Message) -> bytes:
    """Return what a prompt shows of a message; ids of calls are not part of it."""
    calls = [(call.name, call.arguments) for call in message.tool_calls]
    return json.dumps([message.role, message.content, calls, message.name], ensure_ascii=False).encode()


def turn_hashes(session: Session) -> dict[int, str]:
    """Return, for each assistant turn, the hash of its context and itself. Tools are not part of it."""
    chain = hashlib.sha256()
    hashes: dict[int, str] = {}
    for index, message in enumerate(session.messages):
        data = _message_bytes(message)
        chain.update(len(data).to_bytes(8, "big") + data)
        if message.role == "assistant":
            hashes[index] = chain.hexdigest()
    return hashes


def joined_groups(sessions: Iterable[tuple[str, str | None]]) -> list[str]:
    """Return a group for each session: one for all that share a group, or everything up to their first answer.

    A group is named after its smallest member, so the names do not depend on the order of files.

    Args:
        sessions: of each, its group and the hash of its first assistant turn, None if it has none.
    """
    beginnings: dict[str, str] = {}
    pairs = [(group, beginnings.setdefault(first, group) if first else group) for group, first in sessions]
    smallest = joined(pairs)
    return [smallest[group] for group, _ in pairs]


def record_key(tools: bytes, turn_hash: str) -> bytes:
    """Return the 16 bytes by which equal records are found: of the tools that are offered, and of `turn_hashes`."""
    return hashlib.blake2b(tools + bytes.fromhex(turn_hash), digest_size=16).digest()


def tools_hash(session: Session) -> bytes:
    """Return the hash of what a prompt shows of a session's tools, and of where they come from."""
    shown = [(t.name, t.description, t.parameters, t.origin) for t in session.tools]
    return hashlib.sha256(json.dumps(shown).encode()).digest()


def first_of_each(keys: bytes) -> npt.NDArray[np.int64]:
    """Return, for each record, the place of the first one with the same key: its own, unless it is a copy.

    Args:
        keys: those of `record_key`, one after the other.
    """
    halves = np.frombuffer(keys, dtype=np.uint64).reshape(-1, 2)
    order = np.lexsort((halves[:, 0], halves[:, 1]))  # stable: equal keys stay in the order of the records
    ordered = halves[order]
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first = np.empty(len(order), dtype=np.int64)
    first[order] = order[begins][np.cumsum(begins) - 1] if len(order) else order
    return first


SHINGLE_WORDS, SKETCH_SIZE, NEAR, MIN_WORDS = 5, 64, 0.8, 20
"""Near copies share at least 80% of the 64 smallest hashes of their runs of 5 words; short texts are left alone."""
_WORD = re.compile(r"\w+")


def sketch(text: str) -> tuple[int, ...]:
    """Return the smallest hashes of the text's runs of words (a bottom-k sketch), or nothing for a short text."""
    words = _WORD.findall(text.lower())
    if len(words) < MIN_WORDS:
        return ()
    runs = {" ".join(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1)}
    hashes = {zlib.crc32(run.encode()) for run in runs}
    return tuple(heapq.nsmallest(SKETCH_SIZE, hashes))


def similarity(a: Sequence[int], b: Sequence[int]) -> float:
    """Estimate the Jaccard similarity of two texts from their sketches (Broder 1997)."""
    if not a or not b:
        return 0.0
    union = heapq.nsmallest(SKETCH_SIZE, set(a) | set(b))
    both = set(a) & set(b)
    return sum(x in both for x in union) / len(union)


def turn_sketch(session: Session, turn: int) -> tuple[int, ...]:
    """Sketch what a turn says and what it answers: its own text and calls, and the message before it."""
    reference = session.messages[turn]
    calls = [f"{call.name} {call.arguments}" for call in reference.tool_calls]
    return sketch("\n".join([session.messages[turn - 1].content if turn else "", reference.content, *calls]))


def near_copies(train: Iterable[Sketched], validation: Iterable[Sketched]) -> list[tuple[str, str, float]]:
    """Find validation records that a training record nearly repeats: `(validation id, train id, similarity)`.

    The training records are looked at one by one, and only the sketches of the validation records are kept.
    """
    names: list[str] = []
    sketches: list[npt.NDArray[np.uint32]] = []
    for name, hashes in validation:
        names.append(name)
        sketches.append(np.asarray(hashes, dtype=np.uint32))
    sizes = np.array([len(s) for s in sketches], dtype=np.int64)
    if not sizes.sum():
        return []
    every, holder = np.concatenate(sketches), np.repeat(np.arange(len(sketches)), sizes)
    order = np.argsort(every, kind="stable")
    every, holder = every[order], holder[order]
    best: dict[int, tuple[float, str]] = {}
    for name, hashes in train:
        asked = np.asarray(hashes, dtype=np.uint32)
        begins, ends = np.searchsorted(every, asked, "left"), np.searchsorted(every, asked, "right")
        some = begins < ends
        if not some.any():
            continue
        found = np.concatenate([holder[a:b] for a, b in zip(begins[some], ends[some], strict=True)])
        shared = Counter(found.tolist())
        for place, count in shared.items():
            if count >= NEAR * sizes[place] / 2:
                score = similarity(sketches[place].tolist(), asked.tolist())
                best[place] = max(best.get(place, (0.0, "")), (score, name))
    near = sorted((place, *one) for place, one in best.items() if one[0] >= NEAR)
    return [(names[place], name, round(score, 3)) for place, score, name in near]
