"""How a message is handed to a chat template: OpenAI's form, or the variant of it that the template can read.

Templates differ in four things. Some read a text only as a list of parts. Some write the arguments of a call with
Jinja's own text of a mapping, or add it to a text: they want JSON text. Some take a call only of a message whose
content is null. Mistral's take only ids of nine letters and digits. Which form a template reads is found by rendering.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from sdft_cli.prompts.template import ChatTemplate, TemplateError
from sdft_cli.records import Message, ToolCall, ToolSchema

PLANTED_TOOL = ToolSchema(
    "quokka_tool",
    "Does quokka_does.",
    '{"type": "object", "properties": {"quokka_key": {"type": "string", "description": "quokka_about"}}, '
    '"required": ["quokka_key"]}',
)
"""A tool whose words no template has."""


def planted_call(number: int = 1) -> ToolCall:
    """Return a call of the planted tool, with a value of its own."""
    return ToolCall(f"toolu_quokka{number}", PLANTED_TOOL.name, f'{{"quokka_key": "quokka_value{number}"}}')


def call_words(number: int = 1) -> list[str]:
    """Return the words of `planted_call`."""
    return [PLANTED_TOOL.name, "quokka_key", f"quokka_value{number}"]


@dataclass(frozen=True)
class Form:
    """`parts`: content as a list of parts; `text_arguments`: arguments as JSON text; `null_content`: of calls without
    text; `short_ids`: Mistral's."""

    parts: bool = False
    text_arguments: bool = False
    null_content: bool = False
    short_ids: bool = False

    def write(self, message: Message) -> dict[str, Any]:
        """Return a message as the template reads it, with the name of the tool beside its result."""
        written = message.as_openai((lambda call: call.arguments) if self.text_arguments else ToolCall.parsed_arguments)
        if message.role == "tool":
            written["name"] = message.name
        if message.tool_calls and self.null_content and not message.content:
            written["content"] = None
        elif self.parts:
            written["content"] = [{"type": "text", "text": message.content}]
        if self.short_ids:
            for call in written.get("tool_calls", ()):
                call["id"] = _short(call["id"])
            if written.get("tool_call_id"):
                written["tool_call_id"] = _short(written["tool_call_id"])
        return written


def _short(name: str) -> str:
    """Return nine letters and digits for an id."""
    return hashlib.sha256(name.encode()).hexdigest()[:9]


def says_call(template: ChatTemplate, form: Form, tools: Sequence[dict[str, Any]]) -> bool:
    """Say whether a call comes out of a template, its arguments not as Python's own text of a dictionary."""
    messages = [Message("user", "quokka_user"), Message("assistant", "", (planted_call(),))]
    result = Message("tool", "quokka_result", tool_call_id=planted_call().id, name=PLANTED_TOOL.name)
    try:
        texts = [template.render([form.write(m) for m in (*messages, *more)], tools, False) for more in ((), (result,))]
        alone = template.render([form.write(messages[0])], tools, False)
    except TemplateError:
        return False
    said = all(text.count(word) > alone.count(word) for text in texts for word in call_words())
    return said and "{'quokka_key'" not in texts[0].removeprefix(alone)


def says_text(template: ChatTemplate, form: Form) -> bool:
    """Say whether a user's text comes out of a template, and not as Python's own text of a list."""
    try:
        text = template.render([form.write(Message("user", "quokka_user"))])
    except TemplateError:
        return False
    return "quokka_user" in text and "'quokka_user'" not in text


def find_form(template: ChatTemplate) -> Form:
    """Return the first form in which text and calls come out, else the first in which text does, else OpenAI's."""
    tools = [PLANTED_TOOL.as_openai()]
    forms = [form for flags in product((False, True), repeat=4) if says_text(template, form := Form(*flags))]
    return next((form for form in forms if says_call(template, form, tools)), forms[0] if forms else Form())
