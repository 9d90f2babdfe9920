"""Confidence intervals over sessions. The records of one session are not independent, its sessions are taken to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A weighted mean and its interval; `low` and `high` are None where fewer than two sessions allow none.

    `degenerate`: all values are equal, so the interval is that point and says nothing about other sessions.
    """

    value: float
    low: float | None
    high: float | None
    sessions: int
    degenerate: bool

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return asdict(self)


def session_interval(
    values: Sequence[float],
    weights: Sequence[float],
    sessions: Sequence[str],
    confidence: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> Interval:
    """Return sum(w v) / sum(w) with a percentile bootstrap interval that resamples whole sessions.

    Sessions are drawn with replacement, as many as there are, and each brings all its records (cluster bootstrap:
    Davison and Hinkley 1997, sec. 3.8). With few sessions such an interval is too narrow.

    Args:
        values: one per record, e.g. the difference of two models on it.
        weights: one per record, > 0, e.g. its tokens; all 1 for a plain mean over records.
        sessions: the session of each record. The order of records does not matter.
        confidence: of the two-sided interval, in (0, 1).
        resamples: of the bootstrap.
        seed: the same seed gives the same interval.

    Raises:
        ValueError: no values, lengths that differ, a value that is not finite, or a weight that is not positive.
    """
    v, w = np.asarray(values, dtype=float), np.asarray(weights, dtype=float)
    if not len(v) == len(w) == len(sessions) > 0:
        raise ValueError(f"{len(v)} values, {len(w)} weights and {len(sessions)} sessions do not belong together")
    if not (np.isfinite(v).all() and np.isfinite(w).all() and (w > 0).all()):
        raise ValueError("values must be finite and weights positive")
    names, member = np.unique(np.asarray(sessions), return_inverse=True)
    tops, bottoms = np.bincount(member, w * v), np.bincount(member, w)
    value = float(tops.sum() / bottoms.sum())
    if (v == v[0]).all():
        value = float(v[0])
        bound = value if len(names) > 1 else None
        return Interval(value, bound, bound, len(names), degenerate=True)
    if len(names) < 2:
        return Interval(value, None, None, len(names), degenerate=False)
    random = np.random.default_rng(seed)
    means = np.empty(resamples)
    for i in range(resamples):  # one draw at a time: memory does not grow with resamples x sessions
        drawn = random.integers(len(names), size=len(names))
        means[i] = tops[drawn].sum() / bottoms[drawn].sum()
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high), len(names), degenerate=False)
