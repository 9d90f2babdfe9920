"""An answer against the expert's turn, from its text alone: tool calls, prose, copies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import Any

from sdft_cli.prompts.leaks import context_text, copied_share, expert_text, mentions_reference, turn_text, unknown_paths
from sdft_cli.prompts.tool_calls import Syntax, parse_turn
from sdft_cli.prompts.tool_scores import score_tool_turn
from sdft_cli.records import Record

POSITIONS = ((0, "first turn"), (1, "turns 2 to 4"), (4, "turns 5 to 9"), (9, "turns 10 and later"))


@dataclass(frozen=True)
class Score:
    """What one answer's text says.

    Attributes:
        tools: names of the tools that the expert called, joined by `+`; empty for a turn of prose.
        position: which part of its session the turn stands in.
        flags: of a tool turn, those of `ToolScore`; empty where calls cannot be scored.
        chrf: of a turn of prose, chrF (Popovic 2015) against the expert's text, 0 to 100; None without sacrebleu.
        calls_unasked: a turn of prose was answered with a call; None where calls cannot be scored.
        mentions_reference, copied_share, unknown_paths: see `leaks`.
    """

    tools: str
    position: str
    flags: dict[str, bool] = field(default_factory=dict)
    chrf: float | None = None
    calls_unasked: bool | None = False
    mentions_reference: bool = False
    copied_share: float = 0.0
    unknown_paths: list[str] = field(default_factory=list)


def position_of(record: Record) -> str:
    """Return where in its session a record's turn stands, counted in assistant turns."""
    before = sum(message.role == "assistant" for message in record.context)
    return next(name for start, name in reversed(POSITIONS) if before >= start)


def prose_scorer() -> Callable[[str, str], float] | None:
    """Return a function (answer, expert) -> chrF, or None where the package sacrebleu is not installed."""
    if find_spec("sacrebleu") is None:
        return None
    from sacrebleu.metrics.chrf import CHRF

    metric: Any = CHRF()
    return lambda answer, expert: float(metric.sentence_score(answer, [expert]).score)


def score(
    record: Record,
    text: str,
    prose: Callable[[str, str], float] | None,
    syntax: Syntax | None = None,
    scorable: bool = True,
) -> Score:
    """Score the text of an answer, without the token that ended it.

    Args:
        syntax: the model's, in which calls are written; None where it is not known.
        scorable: calls of an answer can be told from those of the expert; without, all that is about calls is left out.
    """
    turn, expert, context = parse_turn(text, record.tools, syntax), record.reference, context_text(record)
    is_tool_turn = bool(expert.tool_calls)
    tool_score = score_tool_turn(turn, expert, record.tools) if is_tool_turn and scorable else None
    decoded = turn_text(turn)
    return Score(
        tools="+".join(sorted(call.name for call in expert.tool_calls)),
        position=position_of(record),
        flags=asdict(tool_score) if tool_score else {},
        chrf=prose(turn.content, expert.content) if prose and not is_tool_turn else None,
        calls_unasked=not is_tool_turn and bool(turn.calls or turn.errors) if scorable else None,
        mentions_reference=mentions_reference(decoded, context),
        copied_share=copied_share(decoded, expert_text(record), context),
        unknown_paths=unknown_paths(decoded, context),
    )
