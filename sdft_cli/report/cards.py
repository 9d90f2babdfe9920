"""Data cards: the README.md of a dataset folder, with Hub metadata, from `templates/cards/`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2

from sdft_cli.resources import resource_text


def dataset_card(manifest: Mapping[str, Any], license_id: str | None = None) -> str:
    """Return the card of a prepared dataset; `license_id` is the source's licence where it is known."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    template = environment.from_string(resource_text("templates", "cards", "dataset.md.jinja"))
    return template.render(manifest=manifest, license=license_id, funnel=manifest["funnel"], config=manifest["config"])
