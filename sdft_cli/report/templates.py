"""The templates of pages and cards, and the filters that they use."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from sdft_cli.notices import visible
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


MOST_CHARACTERS = 4_000
"""Of one text on a page; how many were left out stands behind it."""


def shortened(text: str, most: int = MOST_CHARACTERS) -> str:
    """Return the beginning of a text, with the number of characters that were left out behind it."""
    return text if len(text) <= most else f"{text[:most]} [... {len(text) - most:,} characters left out]"


def _shown(value: Any) -> Any:
    """Make what stands in a page's `{{ }}` harmless to the eye; a template's own markup stays as it is."""
    return visible(shortened(value), keep="\t") if isinstance(value, str) and not hasattr(value, "__html__") else value


def _path(value: str) -> Any:
    """Let the coordinates of a line stand as they are, however many; anything else is refused."""
    from markupsafe import Markup

    if re.search(r"[^0-9., -]", value):
        raise ValueError("coordinates are numbers")
    return Markup(value)


@cache
def _environment(card: bool) -> Any:
    """Return what fills in templates; those that it has read are kept."""
    import jinja2  # only a page or a card needs it

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda path: resource_text("templates", *path.split("/"))),
        undefined=jinja2.StrictUndefined,
        autoescape=not card,
        finalize=None if card else _shown,
        keep_trailing_newline=card,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": "{:,}".format, "coordinate": "{:.1f}".format}
    environment.filters |= {"shortened": shortened, "whole": _path}
    environment.filters |= {"meaning": meaning_of, "code": code_span, "cell": cell}
    return environment


def render(name: str, /, **values: Any) -> str:
    """Fill in a template of `templates/`; on a page every value is escaped, in a card (Markdown) none is.

    On a page no value is longer than `MOST_CHARACTERS`, and none has characters that are not seen.
    """
    return str(_environment(name.startswith("cards/")).get_template(name).render(values))
