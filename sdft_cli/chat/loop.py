"""The loop of a chat: what is typed becomes a command, a message, or the result of a call that waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from sdft_cli.chat.answer import Answer
from sdft_cli.chat.conversation import Conversation
from sdft_cli.errors import DataError, InterruptedBySignal, UsageError
from sdft_cli.notices import visible
from sdft_cli.texts import check_unicode

HELP = """\
/tools   the tools that the model is offered
/skip    leave the calls that wait without a result
/reset   forget what was said
/help    this
/quit    leave, as Ctrl-D does; Ctrl-C stops an answer
\"\"\"      a message or a result of several lines: up to the next line that ends with the same three quotes
Calls are shown and never run: what you type behind one is its result, an empty line an empty one."""
QUOTES = '"""'


class Speaker(Protocol):
    """Models that answer: each in its turn, the last one's answer is the one that the conversation goes on with."""

    names: Sequence[str]

    def answer(self, name: str, conversation: Conversation, write: Callable[[str], None]) -> Answer:
        """Let one of them answer; `write` gets its text piece by piece."""
        ...


class Screen(Protocol):
    """Where a chat is shown."""

    def note(self, text: str) -> None:
        """Show a line that nobody said; it is harmless already."""
        ...

    def begin(self, name: str | None) -> None:
        """Begin an answer; a name where several models answer."""
        ...

    def write(self, text: str) -> None:
        """Show a piece of an answer, as the model wrote it."""
        ...

    def end(self, answer: Answer) -> None:
        """End an answer."""
        ...


class Quit(Exception):
    """The user leaves."""


class Chat:
    """One conversation with one speaker on one screen.

    Args:
        speaker: the models.
        conversation: with its tools and system message.
        screen: where it is shown.
        stop_at_errors: raise what went wrong with a message, where nobody is there to read it and go on.
    """

    def __init__(
        self, speaker: Speaker, conversation: Conversation, screen: Screen, stop_at_errors: bool = False
    ) -> None:
        self.speaker, self.conversation, self.screen = speaker, conversation, screen
        self._stop_at_errors = stop_at_errors

    @property
    def prompt(self) -> str:
        """What stands before the cursor."""
        waiting = self.conversation.waiting
        return f"result of {visible(waiting[0].name)[:40]}> " if waiting else "> "

    def typed(self, text: str) -> None:
        """Take what was typed.

        Raises:
            Quit: the user leaves.
            DataError, UsageError: the message cannot be answered; only where `stop_at_errors`.
        """
        waits = bool(self.conversation.waiting)
        if text.startswith("/") and text.split(maxsplit=1)[0] in self._commands:
            self._commands[text.split(maxsplit=1)[0]]()
        elif text.startswith("/") and " " not in text.strip() and text.strip().count("/") == 1:
            self.screen.note(f"{visible(text.strip())} is no command: /help lists them.")
        elif text.strip() or waits:
            self.said(text)

    def said(self, text: str) -> None:
        """Take a message, or the result of the call that waits, and let the models answer; raises as `typed`."""
        length, waiting = len(self.conversation.messages), list(self.conversation.waiting)
        try:
            self.conversation.take(check_unicode(text, "The message"))
            if not self.conversation.waiting:
                self._answer()
        except InterruptedBySignal:
            raise
        except KeyboardInterrupt:
            self.conversation.take_back(length, waiting)
            self.screen.note("(stopped: the message and this answer are forgotten)")
        except (DataError, UsageError) as error:
            self.conversation.take_back(length, waiting)
            if self._stop_at_errors:
                raise
            self.screen.note(visible(str(error)))

    def _answer(self) -> None:
        several = len(self.speaker.names) > 1
        for name in self.speaker.names:
            self.screen.begin(name if several else None)
            answer = self.speaker.answer(name, self.conversation, self.screen.write)
            self.screen.end(answer)
        self.conversation.add_turn(answer.text, answer.turn)

    @property
    def _commands(self) -> dict[str, Callable[[], None]]:
        return {
            "/tools": self._tools,
            "/skip": self._skip,
            "/reset": self._reset,
            "/help": lambda: self.screen.note(HELP),
            "/quit": self._quit,
            "/exit": self._quit,
            "/bye": self._quit,
        }

    def _tools(self) -> None:
        tools = self.conversation.tools
        if not tools:
            self.screen.note("The model is offered no tools: name a dataset with --dataset.")
        for tool in tools:
            first = visible(tool.description.strip().split("\n")[0])
            self.screen.note(f"{visible(tool.name)}  {first[:100]}".rstrip())

    def _skip(self) -> None:
        self.conversation.waiting = []

    def _reset(self) -> None:
        self.conversation.reset()
        self.screen.note("(forgotten)")

    def _quit(self) -> None:
        raise Quit


def blocks(lines: Iterator[str]) -> Iterator[str]:
    r"""Join lines between lines that begin and end with three quotes into one text."""
    for line in lines:
        if not line.startswith(QUOTES):
            yield line
            continue
        found = [line.removeprefix(QUOTES)]
        while not found[-1].endswith(QUOTES):
            following = next(lines, None)
            if following is None:
                break
            found.append(following)
        yield "\n".join(found).removesuffix(QUOTES).strip("\n")
