"""Copies: the same turn twice, sessions that share their beginning, and near copies across the split."""

from __future__ import annotations

import hashlib
import heapq
import json
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from sdft_cli.preparation.split import joined
from sdft_cli.records import Message, RecordRow, Rejection, Session
from sdft_cli.records.reasons import DUPLICATE


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


def joined_groups(sessions: Sequence[Session], hashes: Sequence[Mapping[int, str]]) -> list[str]:
    """Return a group for each session: one for all that share a group, or everything up to their first answer.

    A group is named after its smallest member, so the names do not depend on the order of files.
    """
    beginnings: dict[str, str] = {}
    pairs = []
    for session, turns in zip(sessions, hashes, strict=True):
        first = next(iter(turns.values()), None)
        pairs.append((session.group, beginnings.setdefault(first, session.group) if first else session.group))
    smallest = joined(pairs)
    return [smallest[session.group] for session in sessions]


def first_of_each(
    rows: Iterable[RecordRow], hash_of: Mapping[str, Hashable]
) -> tuple[list[RecordRow], list[Rejection]]:
    """Keep the first record of each hash; the others become rejections that name it."""
    seen: dict[Hashable, str] = {}
    kept: list[RecordRow] = []
    copies: list[Rejection] = []
    for row in rows:
        first = seen.setdefault(hash_of[row.record_id], row.record_id)
        if first == row.record_id:
            kept.append(row)
        else:
            copies.append(DUPLICATE.rejection(row, f"the same as {first}"))
    return kept, copies


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


def near_copies(
    train: Mapping[str, Sequence[int]], validation: Mapping[str, Sequence[int]]
) -> list[tuple[str, str, float]]:
    """Find validation records that a training record nearly repeats: `(validation id, train id, similarity)`.

    Args:
        train, validation: record id -> sketch.
    """
    holders: dict[int, list[str]] = defaultdict(list)
    for name, hashes in train.items():
        for value in hashes:
            holders[value].append(name)
    copies: list[tuple[str, str, float]] = []
    for name, hashes in validation.items():
        shared = Counter(holder for value in hashes for holder in holders.get(value, ()))
        candidates = [h for h, count in shared.items() if count >= NEAR * len(hashes) / 2]
        scored = [(similarity(hashes, train[h]), h) for h in candidates]
        best: tuple[float, Any] = max(scored, default=(0.0, ""))
        if best[0] >= NEAR:
            copies.append((name, best[1], round(best[0], 3)))
    return copies
