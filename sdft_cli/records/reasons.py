"""Why a turn is no record: every reason, and the function that goes through them. `docs/adding.md` adds one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from sdft_cli.records.types import Message, RecordRow, Rejection, Session


@dataclass(frozen=True)
class Candidate:
    """An assistant turn that is not yet a record: `session.messages[index]`.

    `reasoning_only`: the turn had nothing but reasoning, which is stripped. `caps`: by name, in tokens. `make_row`
    counts the tokens and returns the record's row.
    """

    session: Session
    index: int
    reasoning_only: bool
    caps: Mapping[str, int]
    make_row: Callable[[], RecordRow]

    @property
    def message(self) -> Message:
        return self.session.messages[self.index]

    @cached_property
    def row(self) -> RecordRow:
        """The row of the record that the turn would be; raises what `make_row` raises."""
        return self.make_row()


@dataclass(frozen=True)
class Reason:
    """A reason: its key in `rejected.parquet` and in the funnel, and its meaning as tables show it.

    `rejects` says whether it holds for a turn; None where a look at the turn does not decide it. `cap` names the
    setting that it is about: such reasons come last, so that no tokens are counted of a turn that others reject.
    """

    key: str
    meaning: str
    rejects: Callable[[Candidate], bool] | None = None
    cap: str | None = None

    def rejection(self, row: RecordRow, detail: str = "") -> Rejection:
        """Return the rejection of a turn whose tokens were counted."""
        lengths = (row.prompt_tokens, row.teacher_prompt_tokens, row.reference_tokens)
        return Rejection(row.record_id, row.session_id, row.turn_index, self.key, detail, *lengths)


REASONS: dict[str, Reason] = {}
"""Every reason by its key, in the order in which they are asked."""
REASON_OF_CAP: dict[str, str] = {}
"""The name of a cap -> the key of the reason that is about it."""


def register(
    key: str, meaning: str, rejects: Callable[[Candidate], bool] | None = None, cap: str | None = None
) -> Reason:
    """Add a reason, see `Reason`; raises ValueError if its key is taken."""
    if key in REASONS:
        raise ValueError(f"there is a reason {key} already")
    if cap:
        REASON_OF_CAP[cap] = key
    REASONS[key] = Reason(key, meaning, rejects, cap)
    return REASONS[key]


def first_reason(turn: Candidate) -> Reason | None:
    """Return the reason why a turn is rejected by what it says or by its length, or None.

    A reader that knows why a turn is no reference says so in the `status` of the message. Otherwise it is the first
    reason that holds. Nothing is ever truncated to fit a cap. Not decided here: turns in no conversation (the reader's
    `lost_turns`), a template that refuses the turn (`preparation/turns.py`), copies (`preparation/duplicates.py`), and
    contexts that lack what the model saw (`preparation/coverage.py`), which takes all turns of a source to say.
    """
    if turn.message.status:
        return REASONS[turn.message.status]
    in_order = sorted(REASONS.values(), key=lambda reason: reason.cap is not None)
    return next((reason for reason in in_order if reason.rejects and reason.rejects(turn)), None)


def meaning_of(key: str) -> str:
    """Return the meaning of a reason; "" for one that this version does not know."""
    return REASONS[key].meaning if key in REASONS else ""


ADVICE = {
    "abandoned_branch": "the sessions were rewound often: --branches all makes records of these turns too",
    "api_error": "take sessions that were not broken off by errors",
    "context_incomplete": (
        "look for the whole files, or raise --max-unseen-tokens if these sessions had very many tools"
    ),
    "cut_context": "the files lack the beginning of sessions: look for the whole files",
    "template_error": (
        "choose a model (--model) or a template (--chat-template) that takes these conversations; --parallel-calls "
        "split takes parallel calls apart, --system-prompt none leaves out system messages"
    ),
    "template_loses": (
        "name a template that writes them (--chat-template), or take parallel calls apart (--parallel-calls split)"
    ),
    "unknown_tool": "the tools that the source lists are not those that it calls: correct the list",
}
"""What can be done where one reason takes most turns, by its key. Of a cap it is to raise it."""


def advice_of(key: str) -> str:
    """Return what can be done about a reason, as half a sentence; what a look at the turns gives for any other one."""
    cap = REASONS[key].cap if key in REASONS else None
    return f"raise --{cap.replace('_', '-')}" if cap else ADVICE.get(key, "look at rejected.parquet and the sessions")


# What a reader says in `status`, or of turns that are in no conversation.
API_ERROR = register("api_error", "an API error, not an answer")
ABANDONED_BRANCH = register("abandoned_branch", "on a branch the session did not end on")
SYNTHETIC = register("synthetic", "written by the agent program")
INTERRUPTED = register("interrupted", "the user stopped it or refused its call")
TRUNCATED = register("truncated", "cut off by a token limit, or broken off")  # also stopped on the way
CUT_CONTEXT = register("cut_context", "the beginning of its conversation is in no file")
SIDE_QUERY = register("side_query", "a question of the agent program's own, as for a summary")

# What the turn says.
register("reasoning_only", "nothing but reasoning", lambda turn: turn.reasoning_only)
register("empty_reference", "no text and no call", lambda t: not t.message.content.strip() and not t.message.tool_calls)
register(
    "no_context",
    "no user message before it",
    lambda turn: all(message.role != "user" for message in turn.session.messages[: turn.index]),
)
register(
    "unknown_tool",
    "calls a tool that was not offered",
    lambda turn: not {call.name for call in turn.message.tool_calls} <= {tool.name for tool in turn.session.tools},
)

# What comes out when it is rendered, and when all records are compared: the first of equals is kept and named.
TEMPLATE_ERROR = register("template_error", "the chat template refuses it")
TEMPLATE_LOSES = register("template_loses", "the chat template would drop a part of it")
UNREADABLE_CALL = register("unreadable_call", "a call that the model's own syntax cannot hold")
DUPLICATE = register("duplicate", "the same tools, context and turn as another record")
CONTEXT_INCOMPLETE = register("context_incomplete", "the model saw far more than the session holds")  # or far less

# How long it is.
register(
    "over_prompt_cap",
    "teacher prompt over --max-prompt-tokens",
    lambda turn: turn.row.teacher_prompt_tokens > turn.caps["max_prompt_tokens"],
    "max_prompt_tokens",
)
register(
    "over_rollout_cap",
    "expert turn over --max-rollout-tokens",
    lambda turn: turn.row.reference_tokens > turn.caps["max_rollout_tokens"],
    "max_rollout_tokens",
)
register(
    "over_sequence_cap",
    "prompt + expert turn over --max-seq-tokens",
    lambda turn: turn.row.sequence_tokens > turn.caps["max_seq_tokens"],
    "max_seq_tokens",
)
