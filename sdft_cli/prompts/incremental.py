"""Token counts of every turn of a session at the cost of its distinct text.

Rendering and encoding each turn's prompt alone costs turns x length. But the prompts of one session are made of the
same blocks: the head (everything before the first answer), then one block for each assistant turn with what follows it.
A template that is *local* writes a block in one of two forms: `live`, when no user message stands behind it, or `past`,
when one does (Qwen3.5 drops the think block of turns before the last user query). So each block is rendered twice, in a
window of its own, and the prompts of a turn are sums over the blocks before it:

    student = head + past of blocks before the last one with a user message + live of the rest + generation prompt
    teacher = head + past of all blocks + teacher's turns + generation prompt

Whether a template is local is found out, not believed: `TokenCounter` compares sums with full renderings over made-up
conversations, and every session compares its last counted turn. Where they differ, every turn is rendered in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from sdft_cli.prompts.chat import ChatPrompts
from sdft_cli.prompts.template import TemplateError
from sdft_cli.records import Message, Record, RecordRow, Session, ToolCall, ToolSchema


class NotLocalError(Exception):
    """A rendering is not the sum of its parts; the caller renders in full."""


@dataclass(frozen=True)
class TurnLengths:
    """The numbers of tokens of one turn's two prompts and its reference (end of turn included)."""

    student: int
    teacher: int
    reference: int


@dataclass(frozen=True)
class TurnIds:
    """The same as token ids."""

    student: list[int]
    teacher: list[int]
    reference: list[int]

    @property
    def lengths(self) -> TurnLengths:
        return TurnLengths(len(self.student), len(self.teacher), len(self.reference))


def record_at(session: Session, turn: int) -> Record:
    """Return a record of a turn before its tokens are counted."""
    return Record(RecordRow("", session.session_id, turn, 0, 0, 0, False), session)


def ids_in_full(prompts: ChatPrompts, session: Session, turn: int) -> TurnIds:
    """Render and encode one turn alone. Raises `TemplateError` where the template refuses it."""
    record = record_at(session, turn)
    return TurnIds(prompts.student_ids(record), prompts.teacher_ids(record), prompts.reference_ids(record))


class _Windows:
    """Renders blocks in windows of their own, behind one stub of a user message."""

    def __init__(self, prompts: ChatPrompts) -> None:
        self.prompts = prompts
        self.stub = prompts.form.write(Message("user", "."))
        self.before = prompts.render([self.stub], generation=False)
        self.generation = self.after(prompts.render([self.stub]))
        self.user = self.after(prompts.render([self.stub, self.stub], generation=False))

    def after(self, text: str) -> str:
        """Return what a window renders behind its stub: text that begins at a token boundary."""
        rest = text.removeprefix(self.before)
        if len(rest) == len(text) or not rest.startswith(tuple(self.prompts.encoder.boundaries)):
            raise NotLocalError
        return rest

    def live(self, messages: Sequence[dict[str, Any]]) -> str:
        """Render messages with nothing behind them."""
        return self.after(self.prompts.render([self.stub, *messages], generation=False))

    def past(self, messages: Sequence[dict[str, Any]]) -> str:
        """Render messages with a user message behind them."""
        whole = self.after(self.prompts.render([self.stub, *messages, self.stub], generation=False))
        rest = whole.removesuffix(self.user)
        if len(rest) == len(whole):
            raise NotLocalError
        return rest


class _Sums:
    """The blocks of one session, built up as its turns are asked for in order."""

    def __init__(self, windows: _Windows, session: Session) -> None:
        self.windows = windows
        self.prompts = windows.prompts
        self.session = session
        first_user = next((i for i, m in enumerate(session.messages) if m.role == "user"), len(session.messages))
        # Also turns that are no candidates: wherever an answer stands, it is written live or as past.
        self.starts = [i for i, m in enumerate(session.messages) if m.role == "assistant" and i > first_user]
        self.head: list[int] | None = None
        self.live: list[list[int]] = []
        self.past: list[list[int]] = []
        """The blocks as token ids, in both forms."""
        self.live_from = 0
        """The last block with a user message: it and the blocks behind it are written live."""
        self.live_tokens, self.past_tokens = [0], [0]
        """Tokens of all blocks before the n-th, written live and written as past."""
        self.generation = self.encode(windows.generation)

    def encode(self, text: str) -> list[int]:
        return self.prompts.encoder.encode(text)

    def _grow(self, turn: int) -> list[int]:
        """Render head and blocks up to a turn; return the head."""
        if self.head is None:
            messages = [self.prompts.guarded(m) for m in self.session.messages[: self.starts[0]]]
            self.head = self.encode(self.prompts.render(messages, self.session.tools, generation=False))
        while self.starts[len(self.live)] < turn:
            self._add_block()
        return self.head

    def _add_block(self) -> None:
        number = len(self.live)
        messages = self.session.messages[self.starts[number] : self.starts[number + 1]]
        guarded = [self.prompts.guarded(m) for m in messages]
        has_user = any(m.role == "user" for m in messages)
        live = self.windows.live(guarded)
        past = live if has_user else self.windows.past(guarded)  # its own user message makes it past
        self.live.append(self.encode(live))
        self.past.append(self.live[-1] if live == past else self.encode(past))
        self.live_tokens.append(self.live_tokens[-1] + len(self.live[-1]))
        self.past_tokens.append(self.past_tokens[-1] + len(self.past[-1]))
        if has_user:
            self.live_from = number

    def _ends(self, turn: int) -> tuple[list[int], list[int]]:
        """Return the ids of the teacher's turns and of the reference."""
        reference = self.session.messages[turn]
        turns = self.prompts.teacher_messages(reference)
        shown = self.prompts.render([self.windows.stub, *turns], generation=False)
        return self.encode(self.windows.after(shown)), self.prompts.turn_ids(self.prompts.turn(reference))

    def lengths(self, turn: int) -> TurnLengths:
        """Count the tokens of a turn; turns come in order."""
        head, (message, reference) = self._grow(turn), self._ends(turn)
        shared = len(head) + len(self.generation)
        live = self.live_tokens[-1] - self.live_tokens[self.live_from]
        return TurnLengths(
            student=shared + self.past_tokens[self.live_from] + live,
            teacher=shared + self.past_tokens[-1] + len(message),
            reference=len(reference),
        )

    def ids(self, turn: int) -> TurnIds:
        """Return the ids of the turn that was counted last."""
        head, (message, reference) = self._grow(turn), self._ends(turn)
        student = (head, *self.past[: self.live_from], *self.live[self.live_from :], self.generation)
        teacher = (head, *self.past, message, self.generation)
        return TurnIds([*chain(*student)], [*chain(*teacher)], reference)


class SessionCounter:
    """Counts the tokens of a session's turns, in order; `in_full`: each turn is rendered and encoded alone."""

    def __init__(self, prompts: ChatPrompts, session: Session, windows: _Windows | None) -> None:
        self.prompts = prompts
        self.session = session
        self.in_full = windows is None
        self._sums = None if windows is None else _Sums(windows, session)

    def lengths(self, turn: int) -> TurnLengths:
        """Return the token counts of a turn that has a user message before it; raises `TemplateError`."""
        self.prompts.check(record_at(self.session, turn))
        if self._sums is not None and not self.in_full:
            with suppress(NotLocalError, TemplateError):
                return self._sums.lengths(turn)
        ids = ids_in_full(self.prompts, self.session, turn)  # raises the template's own refusal, if it is one
        self.in_full = True
        return ids.lengths

    def ids(self, turn: int) -> TurnIds:
        """Return the token ids of the turn that was counted last."""
        if self._sums is None or self.in_full:
            return ids_in_full(self.prompts, self.session, turn)
        return self._sums.ids(turn)

    def holds_at(self, turn: int) -> bool:
        """Compare the sums of the turn that was counted last with its full rendering.

        False, too, if a later turn could not be summed: the turns before it were, and nothing vouches for them.
        """
        if self._sums is None or self.in_full:
            return self._sums is None
        try:
            return self.ids(turn) == ids_in_full(self.prompts, self.session, turn)
        except TemplateError:  # the sums did not foresee it; turn by turn, it is the turn's reason
            return False


def _probes() -> list[Session]:
    """Made-up conversations in which a template could betray that it is not local."""
    tools = (ToolSchema("Run", "Run it.", '{"type": "object", "properties": {"x": {"type": "string"}}}'),)
    call, other = ToolCall("c1", "Run", '{"x": "a\\n  b", "n": 3}'), ToolCall("c2", "Run", '{"x": ""}')
    ask, more = Message("user", "Do this.\n"), Message("user", " And this.")
    say = Message("assistant", "  Done: `x`.\n\n")
    act = Message("assistant", "I run it.", (call,))
    both = Message("assistant", "", (call, other))
    out, out2 = (
        Message("tool", "ok\n", tool_call_id="c1", name="Run"),
        Message("tool", "", tool_call_id="c2", name="Run"),
    )
    system = Message("system", "Be brief.")
    conversations = [
        (ask, act, out, say, more, both, out, out2, say),
        (system, ask, both, out, out2, act, out, act, out, more, say),
        (ask, say, say, act, out, more, ask, act, out, say, ask, say),
        (say, ask, act, out, out2, say, more, act, more, act, out),
    ]
    return [Session(f"probe-{i}", c, t) for i, c in enumerate(conversations) for t in ((), tools)]


def _agrees(windows: _Windows, session: Session) -> bool:
    """Compare sums with full renderings at every turn of a probe; where the template refuses one, both must."""
    prompts, sums = windows.prompts, _Sums(windows, session)
    for turn in sums.starts:
        both: list[TurnIds | None] = []
        for ids_of in (sums.ids, partial(ids_in_full, prompts, session)):
            try:
                both.append(ids_of(turn))
            except TemplateError:
                both.append(None)
        if both[0] != both[1]:
            return False
    return True


class TokenCounter:
    """Counts the tokens of sessions with one model's prompts; `local` says whether its template is local."""

    def __init__(self, prompts: ChatPrompts) -> None:
        self.prompts = prompts
        self._windows = self._find_windows()
        prompts.encoder.forget()

    @property
    def local(self) -> bool:
        return self._windows is not None

    def _find_windows(self) -> _Windows | None:
        if not self.prompts.encoder.exact_pieces:
            return None
        try:
            windows = _Windows(self.prompts)
            return windows if all(_agrees(windows, probe) for probe in _probes()) else None
        except (NotLocalError, TemplateError):
            return None

    def session(self, session: Session, in_full: bool = False) -> SessionCounter:
        """Start to count a session; `in_full`: turn by turn, each rendered alone, whatever the template."""
        return SessionCounter(self.prompts, session, None if in_full else self._windows)
