"""Train and validation, by group of sessions: a session, its subagents and its continuations stay together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


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
