"""System prompts that a session begins with: how long they are, and what leaving them out would keep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median_low
from typing import Any

from sdft_cli.prompts.chat import ChatPrompts
from sdft_cli.prompts.template import TemplateError
from sdft_cli.records import Message, Rejection, Session
from sdft_cli.records.reasons import REASON_OF_CAP


def leading(session: Session) -> int:
    """Return how many system messages the session begins with."""
    roles = [message.role != "system" for message in session.messages]
    return roles.index(True) if True in roles else len(roles)


def without(session: Session) -> Session:
    """Return the session without the system messages that it begins with."""
    return replace(session, messages=session.messages[leading(session) :])


def system_tokens(prompts: ChatPrompts, session: Session) -> int | None:
    """Return how many tokens of each prompt the system messages at the beginning take; None if there are none.

    That is what a prompt grows by: some templates write a default where a conversation has no system message, and some
    write the tools into it. Also None where the template refuses them.
    """
    count = leading(session)
    if not count:
        return None
    user = Message("user", ".")
    both = ([*session.messages[:count], user], [user])
    try:
        texts = [prompts.render([prompts.guarded(m) for m in messages], session.tools) for messages in both]
    except TemplateError:
        return None
    with_them, alone = (len(prompts.encoder.encode(text)) for text in texts)
    return with_them - alone


def kept_without(rejected: Iterable[Rejection], tokens_of: Mapping[str, int], caps: Mapping[str, int]) -> int:
    """Count the turns over a cap that would fit all caps without the system prompt.

    Args:
        rejected: every rejection; those by another reason than a cap do not count.
        tokens_of: session id -> tokens of its system prompt.
        caps: by name, in tokens.
    """
    count = 0
    for turn in rejected:
        saved = tokens_of.get(turn.session_id, 0)
        if saved <= 0 or turn.reason not in REASON_OF_CAP.values():
            continue
        if turn.teacher_prompt_tokens is None or turn.reference_tokens is None:
            continue
        prompt = turn.teacher_prompt_tokens - saved
        lengths = {
            "max_prompt_tokens": prompt,
            "max_rollout_tokens": turn.reference_tokens,
            "max_seq_tokens": prompt + turn.reference_tokens,
        }
        count += all(lengths[name] <= caps[name] for name in REASON_OF_CAP)
    return count


def system_summary(
    tokens_of: Mapping[str, int], rejected: Sequence[Rejection], caps: Mapping[str, int], dropped: bool
) -> dict[str, Any] | None:
    """Return what the manifest says of system prompts, None if no session begins with one.

    `sessions` begin with one, of `median_tokens`; `dropped` says whether the records lack it. `more_without`: records
    that `--system-prompt none` would keep in addition, of the turns that a cap rejected.
    """
    if not tokens_of:
        return None
    return {
        "sessions": len(tokens_of),
        "median_tokens": median_low(tokens_of.values()),
        "dropped": dropped,
        "more_without": 0 if dropped else kept_without(rejected, tokens_of, caps),
    }
