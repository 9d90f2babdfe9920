"""Train and validation, by group of sessions: a session, its subagents, its continuations and copies stay together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from sdft_cli.records import Session


def split_keys(sessions: Sequence[Session], split_by: str) -> dict[str, str]:
    """Return, for each session id, the name of what must not straddle the split.

    By `session` that is its group. By `project` it is `metadata["project"]`; groups that work on several projects join
    them, and a session without a project stands for itself.
    """
    if split_by == "session":
        return {s.session_id: s.group for s in sessions}
    of_group: dict[str, str] = {}
    joined: dict[str, str] = {}

    def root(name: str) -> str:
        while joined.get(name, name) != name:
            name = joined[name]
        return name

    for session in sessions:
        project = session.metadata.get("project")
        name = f"project {project}" if project else f"group {session.group}"
        joined.setdefault(name, name)
        low, high = sorted((root(name), root(of_group.setdefault(session.group, name))))
        joined[high] = low
    return {s.session_id: root(of_group[s.group]) for s in sessions}


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
