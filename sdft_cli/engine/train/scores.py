"""What a step finds at its tokens, and how what several processes found is joined: numbers, and the gradient."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdft_cli.engine.objective.loss import LossOutput
from sdft_cli.engine.parallel.processes import Processes


@dataclass
class Scored:
    """`loss`: nats. `per_token[i]`: the divergence at each token of trajectory i up to its last one with loss, nats.

    `log_probs[i]`: the trainer's log-probabilities of the same tokens, nats; None unless they were asked for.
    """

    loss: float
    per_token: list[list[float]]
    log_probs: list[list[float]] | None

    def note(self, turns: Sequence[int], lengths: Sequence[int], output: LossOutput, log_probs: Tensor | None) -> None:
        """Keep what a pass over some turns gave: its tensors are (sum of lengths,)."""
        self.loss += output.loss.item()
        for i, values in zip(turns, output.per_token.split(list(lengths)), strict=True):
            self.per_token[i] = values.tolist()
        if self.log_probs is not None and log_probs is not None:
            for i, values in zip(turns, log_probs.split(list(lengths)), strict=True):
                self.log_probs[i] = values.tolist()


def joined(scored: Scored, processes: Processes) -> Scored:
    """Return what all processes found: the sum of their losses, and the tokens of each trajectory from one of them."""
    parts = processes.gather(scored)
    logs = None if scored.log_probs is None else [_only(rows) for rows in zip(*_logs(parts), strict=True)]
    per_token = [_only(rows) for rows in zip(*(part.per_token for part in parts), strict=True)]
    return Scored(sum(part.loss for part in parts), per_token, logs)


def _logs(parts: Iterable[Scored]) -> list[list[list[float]]]:
    return [part.log_probs for part in parts if part.log_probs is not None]


def _only(rows: Sequence[list[float]]) -> list[float]:
    """Return the row of the process that had the trajectory: those of the others are empty."""
    return next((row for row in rows if row), [])


def add_gradients(parameters: Iterable[torch.nn.Parameter], processes: Processes) -> None:
    """Make each gradient the sum of those of all processes: that of one process, up to rounding.

    A parameter that has a gradient on one of them has one on all.
    """
    known = list(parameters)
    flags = zip(*processes.gather([p.grad is not None for p in known]), strict=True)
    used = [p for p, some in zip(known, flags, strict=True) if any(some)]
    for parameter in used:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    processes.sum([p.grad for p in used if p.grad is not None])
