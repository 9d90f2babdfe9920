"""What a chat template cannot say, found by planting words and looking for them in what it renders.

A part that the template drops is lost without a word: a call that is not written is a turn that ends at once. Where a
template refuses a part by an error of its own, nothing is lost, and the turn is rejected with that error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from sdft_cli.prompts.forms import PLANTED_TOOL, Form, call_words, planted_call
from sdft_cli.prompts.template import ChatTemplate, TemplateError
from sdft_cli.records import Message, Record

Words = Sequence[str]


class TemplateLoses(TemplateError):
    """The template would drop a part of this conversation; the record is rejected as `template_loses`."""


PHRASES = {
    "system": "a system message",
    "later_system": "a system message within the conversation",
    "tools": "the tools that are offered",
    "users": "one of two user messages in a row",
    "said": "an answer's text",
    "answers": "one of two answers in a row",
    "calls": "tool calls",
    "results": "tool results",
    "parallel": "the second of two calls in one turn",
    "beside": "text beside a tool call",
}
"""The parts of a conversation that a template may drop, and how they are named."""


@dataclass(frozen=True)
class Unsaid:
    """The parts that a template drops before a turn (`prompt`), and of the turn itself (`reference`)."""

    prompt: frozenset[str]
    reference: frozenset[str]

    def lost(self, record: Record, joined: bool = False, shown: bool = False) -> list[str]:
        """Name what a record has and the template drops.

        `joined`: user messages in a row are made one. `shown`: its turn stands in the teacher's prompt like any other.
        """
        if not self.prompt and not self.reference:
            return []
        context = parts_of(record.context) - ({"users"} if joined else set())
        context |= parts_of([record.reference]) if shown else set()
        if record.tools:
            context.add("tools")
        found = (self.prompt & context) | (self.reference & parts_of([record.reference]))
        return [PHRASES[part] for part in PHRASES if part in found]


def parts_of(messages: Sequence[Message]) -> set[str]:
    """Return the parts that a conversation has, but for the tools that it is offered."""
    found: set[str] = set()
    before: Message | None = None
    for message in messages:
        if message.role == "system":
            found.add("system" if before is None or before.role == "system" else "later_system")
        elif message.role == "tool":
            found.add("results")
        elif message.role == "user" and before is not None and before.role == "user":
            found.add("users")
        elif message.role == "assistant":
            found |= _of_answer(message)
            if before is not None and before.role == "assistant":
                found.add("answers")
        before = message
    return found


def _of_answer(message: Message) -> set[str]:
    found = {"calls"} if message.tool_calls else {"said"} if message.content.strip() else set()
    if len(message.tool_calls) > 1:
        found.add("parallel")
    if message.tool_calls and message.content.strip():
        found.add("beside")
    return found


def _result(number: int) -> Message:
    call = planted_call(number)
    return Message("tool", f"quokka_result{number}", tool_call_id=call.id, name=call.name)


ASK, MORE = Message("user", "quokka_ask"), Message("user", "quokka_more")
SAY, AGAIN = Message("assistant", "quokka_say"), Message("assistant", "quokka_again")
RULE = Message("system", "quokka_rule")
CALL, BOTH = (Message("assistant", "", calls) for calls in ((planted_call(),), (planted_call(1), planted_call(2))))
BESIDE = Message("assistant", "quokka_beside", (planted_call(),))

TWO_CALLS = [*call_words(1), *call_words(2)]
ANSWERS: dict[str, tuple[Message, Words]] = {
    "said": (SAY, ["quokka_say"]),
    "calls": (CALL, call_words()),
    "parallel": (BOTH, TWO_CALLS),
    "beside": (BESIDE, ["quokka_beside", *call_words()]),
}
"""A turn with each part, and its words."""

PROMPTS: dict[str, tuple[Sequence[Message], Words]] = {
    "system": ((RULE, ASK), ["quokka_rule"]),
    "later_system": ((ASK, SAY, RULE, MORE), ["quokka_rule"]),
    "users": ((ASK, MORE), ["quokka_ask", "quokka_more"]),
    "said": ((ASK, SAY, MORE), ["quokka_say"]),
    "answers": ((ASK, SAY, AGAIN, MORE), ["quokka_say", "quokka_again"]),
    "calls": ((ASK, CALL, _result(1)), call_words()),
    "results": ((ASK, CALL, _result(1)), ["quokka_result1"]),
    "parallel": ((ASK, BOTH, _result(1), _result(2)), [*TWO_CALLS, "quokka_result1", "quokka_result2"]),
    "beside": ((ASK, BESIDE, _result(1)), ["quokka_beside", *call_words()]),
}
"""A conversation with each part, and its words. Those that end in a result are looked at with more behind it, too."""

TOOL_WORDS = (PLANTED_TOOL.name, "quokka_key")
"""Of an offered tool: a template may leave out what it is for, not what it takes."""


def find_unsaid(template: ChatTemplate, form: Form) -> Unsaid:
    """Render every part and return those whose words do not come out; one that is refused is not among them."""
    look = _Look(template, form)
    return Unsaid(
        frozenset(part for part, (messages, words) in PROMPTS.items() if look.drops_in_prompt(messages, words))
        | ({"tools"} if look.drops_tools() else set()),
        frozenset(part for part, (answer, words) in ANSWERS.items() if look.drops([ASK, answer], words)),
    )


def planted_texts(template: ChatTemplate, form: Form) -> list[str]:
    """Return what a template makes of the conversations with each part that it does not refuse."""
    look, found = _Look(template, form), []
    for messages, _ in PROMPTS.values():
        with suppress(TemplateError):
            found.append(look.render(messages, offered=True))
    return found


@dataclass(frozen=True)
class _Look:
    template: ChatTemplate
    form: Form

    def drops_in_prompt(self, messages: Sequence[Message], words: Words) -> bool:
        """Say whether words get lost before the next turn: right there or once the conversation went on."""
        further: list[Sequence[Message]] = [messages]
        if messages[-1].role == "tool":
            further += [(*messages, MORE), (*messages, SAY, MORE)]
        return any(self.drops(each, words, offered=True) for each in further)

    def drops_tools(self) -> bool:
        """Say whether what is offered does not come out."""
        try:
            text = self.render([ASK], offered=True)
        except TemplateError:
            return False
        return any(word not in text for word in TOOL_WORDS)

    def drops(self, messages: Sequence[Message], words: Words, offered: bool = False) -> bool:
        """Say whether a word comes out less often than it is in `words`, not counting the tools that are offered."""
        try:
            text = self.render(messages, offered)
            tools = self.render([ASK], offered)
        except TemplateError:
            return False
        others = Counter({word: tools.count(word) for word in TOOL_WORDS})
        return any(text.count(word) - others[word] < count for word, count in Counter(words).items())

    def render(self, messages: Sequence[Message], offered: bool) -> str:
        """Render up to the next turn where tools are offered, else up to the end of the last one.

        Some templates take tools only behind a system message: what is refused is tried again behind one.
        """
        tools = [PLANTED_TOOL.as_openai()] if offered else []
        try:
            return self.template.render([self.form.write(m) for m in messages], tools, offered)
        except TemplateError:
            return self.template.render([self.form.write(m) for m in (RULE, *messages)], tools, offered)


def sentence(lost: Iterable[str]) -> str:
    """Return what is lost as a sentence."""
    return f"The chat template does not write {' or '.join(lost)}."
