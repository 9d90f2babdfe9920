"""A model's chat template: its text, the date that it reads, and rendering through transformers.

A template that asks for the date (`strftime_now`) gets the same one for all of a dataset, so that prompts are the same
at midnight and next year.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import date as Date
from pathlib import Path
from typing import Any

from sdft_cli.errors import DataError, UsageError, did_you_mean
from sdft_cli.resources import resource, resource_text, text_hash
from sdft_cli.texts import read_text

OWN = "own"
"""The name of the template that a model's tokenizer brings."""
_TOKEN = re.compile(r"<\|[^|<>\s'\"{}]+\|>|<(?:start|end)_of_turn>")
_CLOCK = re.compile(r"\bstrftime_now\b")


class TemplateError(DataError):
    """The model's chat template cannot render this conversation; the record is rejected as `template_error`."""


class ChatTemplate:
    """A template as one tokenizer renders it.

    Attributes:
        name: `own`, or as `load_chat_template` was asked.
        text: Jinja.
        date: the date that it is told, `YYYY-MM-DD`; None if it does not ask.
    """

    def __init__(self, tokenizer: Any, text: str | None = None, name: str = OWN, date: str | None = None) -> None:
        """Take a template, or the tokenizer's own if `text` is None; `date`: for one that asks, None is today.

        Raises:
            UsageError: the date is none.
        """
        self.tokenizer = tokenizer
        self.name = name
        self.text = own_template(tokenizer) if text is None else text
        self.date = (date or Date.today().isoformat()) if _CLOCK.search(self.text) else None
        self._globals: dict[str, Any] = {"strftime_now": _day(self.date).strftime} if self.date else {}

    @property
    def hash(self) -> str:
        """The hash that manifests record, of the text and the date that it is told."""
        return text_hash(self.text if self.date is None else f"{self.text}\0{self.date}")

    def render(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = (), generation: bool = True
    ) -> str:
        """Return the text of messages, up to the next turn if `generation`; raises `TemplateError`."""
        from jinja2 import TemplateError as JinjaError

        try:
            text = self.tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) or None,
                chat_template=self.text,
                tokenize=False,
                add_generation_prompt=generation,
                enable_thinking=False,
                **self._globals,
            )
        except (JinjaError, TypeError, KeyError, ValueError, AttributeError, IndexError) as error:
            raise TemplateError(f"The chat template refuses this conversation: {error}") from error
        return str(text)


def own_template(tokenizer: Any) -> str:
    """Return the template of a tokenizer; where it has several, the one for tools, or else its default.

    Raises:
        UsageError: it has none, or several and none of these.
    """
    found = tokenizer.chat_template
    if isinstance(found, dict):
        for name in ("tool_use", "default"):
            if found.get(name):
                return str(found[name])
    elif found:
        return str(found)
    named = f" for tools or for all (it has {', '.join(sorted(found))})" if found else ""
    raise UsageError(
        f"The tokenizer of {tokenizer.name_or_path} has no chat template{named}: use an instruct model, or name a "
        f"template with --chat-template (a .jinja file, or one of {', '.join(chat_templates())})."
    )


def chat_templates() -> list[str]:
    """Return the names of the templates that ship with sdft."""
    return sorted(Path(item.name).stem for item in resource("templates", "chat").iterdir())


def load_chat_template(name: str) -> str:
    """Return the text of a template: a name in `templates/chat/` or the path of a .jinja file.

    Raises:
        UsageError: there is none, or it is no Jinja.
    """
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import _compile_jinja_template

    path = Path(name).expanduser()
    if path.suffix != ".jinja":
        if name not in chat_templates():
            raise UsageError(
                f"Chat template {name} is no .jinja file and none of those that ship with sdft: "
                f"{did_you_mean(name, chat_templates())}"
            )
        return resource_text("templates", "chat", f"{name}.jinja")
    text = read_text(path, "Chat template")
    try:
        _compile_jinja_template(text)
    except TemplateSyntaxError as error:
        raise UsageError(
            f"Chat template {path} is no Jinja (line {error.lineno}: {error.message}): mend it."
        ) from error
    return text


def check_tokens(template: ChatTemplate, texts: Iterable[str]) -> None:
    """Refuse a template that writes control tokens which the tokenizer does not have: it is for another family.

    Args:
        template: one that was named, not the model's own.
        texts: what it renders.

    Raises:
        UsageError: names them.
    """
    known = template.tokenizer.get_added_vocab()
    missing = sorted({token for text in texts for token in _TOKEN.findall(text) if token not in known})
    if missing:
        raise UsageError(
            f"Chat template {template.name} writes {', '.join(missing)}, and the model has no such token: "
            f"choose one for the model's family ({', '.join(chat_templates())}, or a file)."
        )


def _day(text: str) -> Date:
    try:
        return Date.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"{text} is no date: write it as YYYY-MM-DD.") from error
