"""What every session goes through, wherever it does; and how many are on their way at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

from sdft_cli.config import PrepareConfig
from sdft_cli.preparation.turns import Redact, Revealed, SessionTurns, turns_of
from sdft_cli.prompts.chat import ChatPrompts
from sdft_cli.prompts.incremental import TokenCounter
from sdft_cli.records import Session

Item = TypeVar("Item")
Pending = TypeVar("Pending")


class Given(NamedTuple):
    """A session on its way. `revealed`: what the sessions of its group give away; None: it is not known."""

    session: Session
    revealed: Revealed | None = None


Each = Callable[[str, Iterable[Given]], Iterator[Any]]
"""Calls a method of `Job`, by its name, for sessions; yields what it returns, in their order."""


@dataclass(frozen=True)
class Job:
    """What every session goes through. Pickled once for all worker processes.

    Raises ValueError if `config.redact` asks for redaction and `redact` is missing, or the other way round.
    """

    config: PrepareConfig
    prompts: ChatPrompts
    redact: Redact | None

    def __post_init__(self) -> None:
        if self.config.redact != (self.redact is not None):
            raise ValueError("config.redact and redact disagree")

    @cached_property
    def counter(self) -> TokenCounter:
        return TokenCounter(self.prompts)

    def run(self, given: Given) -> SessionTurns:
        """Strip and redact one session, and count the tokens of its turns."""
        return turns_of(given.session, self.counter, self.config, self.redact, given.revealed)

    def search(self, given: Given) -> tuple[str, Revealed]:
        """Return the group of a session, and what the session gives away."""
        return given.session.group, self.redact.revealed(given.session) if self.redact is not None else {}


IN_FLIGHT = 4
"""Sessions (or batches, see `on_ray`) per worker that are on their way: enough that none waits, few for memory."""


def in_order(submit: Callable[[Item], Pending], items: Iterable[Item], most: int) -> Iterator[Pending]:
    """Submit items and yield what `submit` returned in their order, with at most `most` that were not yielded."""
    waiting: deque[Pending] = deque()
    for item in items:
        waiting.append(submit(item))
        if len(waiting) >= most:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()
