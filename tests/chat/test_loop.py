"""A chat with a scripted speaker: what is typed, what the model is shown, what is on the screen."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence

import pytest

from sdft_cli.chat.answer import Answer
from sdft_cli.chat.conversation import Conversation
from sdft_cli.chat.loop import Chat, Quit, blocks
from sdft_cli.chat.screen import JsonScreen, TextScreen
from sdft_cli.errors import DataError, InterruptedBySignal, UsageError
from sdft_cli.prompts.tool_calls import parse_turn
from sdft_cli.records import Message, ToolSchema

CALL = '<tool_call>\n{"name": "Read", "arguments": {"path": "a\\nb"}}\n</tool_call>'
TOOLS = (ToolSchema("Read", "Read a file.\nAll of it.", '{"type": "object"}'),)


class Script:
    """Says what it is told to, or raises it; remembers the messages that it was shown."""

    def __init__(self, *texts: str | BaseException, names: Sequence[str] = ("model",)) -> None:
        self.names = names
        self.shown: list[list[tuple[str, str]]] = []
        self._texts = list(texts)

    def answer(self, name: str, conversation: Conversation, write: Callable[[str], None]) -> Answer:
        self.shown.append([(m.role, m.content) for m in conversation.record().context])
        text = self._texts.pop(0)
        if isinstance(text, BaseException):
            raise text
        for piece in text.split(" "):
            write(piece)
        return Answer(name, text, parse_turn(text, conversation.tools), True, 3, 2)


def chat(script: Script, conversation: Conversation | None = None, **more: bool) -> tuple[Chat, io.StringIO]:
    file = io.StringIO()
    return Chat(script, conversation or Conversation(tools=TOOLS), TextScreen(file), **more), file


def test_a_call_waits_for_its_result() -> None:
    talk, file = chat(Script(f"I look.{CALL}{CALL}", "done"))
    talk.typed("read it")
    assert talk.prompt == "result of Read> "
    talk.typed("one")
    talk.typed("")
    assert talk.prompt == "> "
    assert talk.speaker.shown[1] == [  # type: ignore[attr-defined]
        ("user", "read it"),
        ("assistant", "I look."),
        ("tool", "one"),
        ("tool", ""),
    ]
    calls = talk.conversation.messages[1].tool_calls
    assert [call.parsed_arguments() for call in calls] == [{"path": "a\nb"}] * 2
    assert [m.tool_call_id for m in talk.conversation.messages[2:4]] == [call.id for call in calls]
    assert 'call: Read {"path": "a\\nb"}' in file.getvalue()
    assert file.getvalue().endswith("done\n")


def test_a_call_that_cannot_be_read_stays_text() -> None:
    talk, file = chat(Script('<tool_call>{"name": "Read", "arg'))
    talk.typed("go")
    assert talk.prompt == "> "
    assert talk.conversation.messages[-1] == Message("assistant", '<tool_call>{"name": "Read", "arg')
    assert "call of Read that cannot be read: unterminated" in file.getvalue()


def test_commands() -> None:
    talk, file = chat(Script(CALL, "b"), Conversation((Message("system", "s"),), TOOLS))
    talk.typed("/tools")
    talk.typed("/nonsense")
    talk.typed("  ")
    talk.typed("a")
    talk.typed("/skip")
    talk.typed("/etc/passwd is a file")
    assert talk.speaker.shown[-1][-1] == ("user", "/etc/passwd is a file")  # type: ignore[attr-defined]
    talk.typed("/reset")
    assert talk.conversation.record().context == (Message("system", "s"),)
    talk.typed("/help")
    printed = file.getvalue()
    assert "Read  Read a file.\n" in printed
    assert "/nonsense is no command: /help lists them." in printed
    assert "Ctrl-D" in printed
    with pytest.raises(Quit):
        talk.typed("/quit")


def test_what_failed_or_was_stopped_is_taken_back() -> None:
    talk, file = chat(Script("a", DataError("too \x1b[1mlong"), KeyboardInterrupt(), "b"))
    talk.typed("one")
    talk.typed("two")
    talk.typed("three")
    assert r"too \x1b[1mlong" in file.getvalue()
    assert "(stopped" in file.getvalue()
    talk.typed("four")
    assert talk.speaker.shown[-1] == [("user", "one"), ("assistant", "a"), ("user", "four")]  # type: ignore[attr-defined]


def test_a_result_that_failed_can_be_typed_again() -> None:
    talk, _ = chat(Script(CALL, DataError("no"), "b"))
    for text in ("go", "one", "two"):
        talk.typed(text)
    assert talk.speaker.shown[-1][-1] == ("tool", "two")  # type: ignore[attr-defined]
    assert len(talk.speaker.shown[-1]) == 3  # type: ignore[attr-defined]


def test_a_message_that_is_no_utf_8_is_said_and_forgotten() -> None:
    talk, file = chat(Script("b"))
    talk.typed("a\udcff")
    assert "The message is no UTF-8 text" in file.getvalue()
    talk.typed("a")
    assert talk.speaker.shown == [[("user", "a")]]  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="no UTF-8"):
        chat(Script(), stop_at_errors=True)[0].typed("a\udcff")


def test_errors_and_signals_end_a_chat_that_nobody_watches() -> None:
    with pytest.raises(DataError):
        chat(Script(DataError("no")), stop_at_errors=True)[0].typed("a")
    with pytest.raises(InterruptedBySignal):
        chat(Script(InterruptedBySignal("stop")))[0].typed("a")


def test_of_several_models_the_last_goes_on() -> None:
    talk, file = chat(Script("from base", "from tuned", "x", "y", names=("base", "tuned")))
    talk.typed("a")
    talk.typed("b")
    assert talk.speaker.shown[0] == talk.speaker.shown[1]  # type: ignore[attr-defined]
    assert talk.speaker.shown[2][1] == ("assistant", "from tuned")  # type: ignore[attr-defined]
    assert file.getvalue().startswith("--- base ---\nfrombase\n--- tuned ---\nfromtuned\n")


def test_hostile_answers_do_not_reach_the_terminal() -> None:
    hostile = '\x1b[2J[red]x[/red]\u202e<tool_call>{"name": "R\\u001b[1m", "arguments": {"a": "\\u202e"}}</tool_call>'
    talk, file = chat(Script(hostile))
    talk.typed("a")
    printed = file.getvalue()
    assert all(one.isprintable() or one == "\n" for one in printed)
    assert r"\x1b[2J[red]x[/red]\u202e" in printed
    assert r"call: R\x1b[1m" in printed
    assert all(one.isprintable() for one in talk.prompt)


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    talk = Chat(Script(f"t{CALL}"), Conversation(tools=TOOLS), JsonScreen())
    talk.typed("a")
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {
        "model": "model",
        "text": f"t{CALL}",
        "content": "t",
        "calls": [{"name": "Read", "arguments": {"path": "a\nb"}}],
        "broken_calls": [],
        "finished": True,
        "prompt_tokens": 3,
        "tokens": 2,
    }


def test_three_quotes_hold_several_lines() -> None:
    lines = ["a", '"""b', "", 'c"""', '"""d"""', '"""', "e", '"""', '"""open', "f"]
    assert list(blocks(iter(lines))) == ["a", "b\n\nc", "d", "e", "open\nf"]
