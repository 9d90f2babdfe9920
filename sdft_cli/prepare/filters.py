"""Why a turn is no record. A filter returns a reason or None; the reasons are a closed list."""

from __future__ import annotations

from enum import StrEnum

from sdft_cli.config import PrepareConfig
from sdft_cli.records import Session


class Reason(StrEnum):
    """Every reason in `rejected.parquet`, with what it means."""

    EMPTY_REFERENCE = "empty_reference"
    """The turn has no text and no tool call."""
    REASONING_ONLY = "reasoning_only"
    """The turn had nothing but reasoning, which is stripped."""
    API_ERROR = "api_error"
    """The agent wrote an API error where an answer should be."""
    SYNTHETIC = "synthetic"
    """The agent wrote the turn itself, not a model."""
    INTERRUPTED = "interrupted"
    """The user stopped the agent in this turn or refused its tool call."""
    TRUNCATED = "truncated"
    """The turn is not whole: it ran into a token limit, or was stopped on the way."""
    NO_CONTEXT = "no_context"
    """No user message stands before the turn."""
    UNKNOWN_TOOL = "unknown_tool"
    """The turn calls a tool that its session does not offer."""
    TEMPLATE_ERROR = "template_error"
    """The model's chat template refuses the conversation."""
    OVER_PROMPT_CAP = "over_prompt_cap"
    """The teacher's prompt is longer than `max_prompt_tokens`."""
    OVER_ROLLOUT_CAP = "over_rollout_cap"
    """The expert's turn is longer than `max_rollout_tokens`."""
    OVER_SEQUENCE_CAP = "over_sequence_cap"
    """Teacher's prompt and expert's turn together are longer than `max_seq_tokens`."""
    DUPLICATE = "duplicate"
    """Another record has the same tools, context and turn; the first one is kept and named."""
    ABANDONED_BRANCH = "abandoned_branch"
    """The turn stands on a branch that the session did not end on."""


def content_reason(session: Session, turn: int, reasoning_only: bool) -> Reason | None:
    """Say why a turn cannot be a reference, by what it says."""
    message = session.messages[turn]
    if message.status:
        return Reason(message.status)
    if reasoning_only:
        return Reason.REASONING_ONLY
    if not message.content.strip() and not message.tool_calls:
        return Reason.EMPTY_REFERENCE
    if not any(m.role == "user" for m in session.messages[:turn]):
        return Reason.NO_CONTEXT
    names = {tool.name for tool in session.tools}
    if any(call.name not in names for call in message.tool_calls):
        return Reason.UNKNOWN_TOOL
    return None


def length_reason(config: PrepareConfig, teacher_prompt_tokens: int, reference_tokens: int) -> Reason | None:
    """Say which cap a turn breaks; nothing is ever truncated to fit."""
    if teacher_prompt_tokens > config.max_prompt_tokens:
        return Reason.OVER_PROMPT_CAP
    if reference_tokens > config.max_rollout_tokens:
        return Reason.OVER_ROLLOUT_CAP
    if teacher_prompt_tokens + reference_tokens > config.max_seq_tokens:
        return Reason.OVER_SEQUENCE_CAP
    return None
