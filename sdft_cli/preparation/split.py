"""Train and validation, by group of sessions: a session, its subagents, its continuations and copies stay together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from sdft_cli.records import Session


def joined(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return, for each name in some pairs, the smallest of all names that the pairs join it with."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return {name: root(name) for name in list(parent)}


def split_keys(sessions: Sequence[Session], split_by: str) -> dict[str, str]:
    """Return, for each session id, the name of what must not straddle the split.

    By `session` that is its group. By `project` it is `metadata["project"]`; groups that work on several projects join
    them, and a session without a project stands for itself.
    """
    if split_by == "session":
        return {s.session_id: s.group for s in sessions}
    projects = [s.metadata.get("project") for s in sessions]
    names = [f"project {p}" if p else f"group {s.group}" for s, p in zip(sessions, projects, strict=True)]
    first: dict[str, str] = {}
    smallest = joined((name, first.setdefault(s.group, name)) for s, name in zip(sessions, names, strict=True))
    return {s.session_id: smallest[first[s.group]] for s in sessions}


def validation_groups(groups: Iterable[str], fraction: float, seed: int) -> set[str]:
    """Choose the groups that are held out.

    A group's place in the order is a hash of the seed and its name, so it does not depend on the other groups' names
    or on the order of files. `round(fraction * n)` groups are held out: at least one if `fraction` > 0 and there are
    two, and never all.
    """
    names = sorted(set(groups), key=lambda g: hashlib.sha256(f"{seed}:{g}".encode()).digest())
    if fraction <= 0 or len(names) < 2:
        return set()
    count = min(max(1, round(fraction * len(names))), len(names) - 1)
    return set(names[:count])
