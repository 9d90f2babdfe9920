"""The templates of pages and cards, and the filters that they use."""

from __future__ import annotations

import re
from typing import Any

from sdft_cli.records.reasons import meaning_of
from sdft_cli.resources import resource_text


def code_span(value: Any) -> str:
    """Return a name as code for Markdown, harmless in a heading and in a table cell whatever the name is.

    White space and control characters become blanks. A name of ordinary characters stands between backticks; of any
    other name each unusual character is an HTML entity, which Markdown never reads as syntax.
    """
    text = _one_line(value)
    if re.fullmatch(r"[\w .:/@+-]+", text):
        return f"`{text}`"
    return "<code>" + _entities(r"[^\w ]|_", text) + "</code>"


def cell(value: Any) -> str:
    """Return a text for a table cell: what could be Markdown or HTML is an entity."""
    return _entities(r"[^\w .:;,%()+/=-]|_", _one_line(value))


def _one_line(value: Any) -> str:
    return re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", str(value)).strip()


def _entities(unusual: str, text: str) -> str:
    return re.sub(unusual, lambda match: f"&#{ord(match[0])};", text)


def render(name: str, **values: Any) -> str:
    """Fill in a template of `templates/`; on a page every value is escaped, in a card (Markdown) none is."""
    import jinja2  # only a page or a card needs it

    card = name.startswith("cards/")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        autoescape=not card,
        keep_trailing_newline=card,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": "{:,}".format, "coordinate": "{:.1f}".format}
    environment.filters |= {"meaning": meaning_of, "code": code_span, "cell": cell}
    return environment.from_string(resource_text("templates", *name.split("/"))).render(values)
