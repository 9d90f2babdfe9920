"""Data files that ship with the package: `templates/` and `data_cards/`.

In a wheel they lie inside the package; in a source checkout they lie beside it, at the top of the repository.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from sdft_cli.errors import UsageError


def resource(*parts: str) -> Traversable:
    """Return the shipped file or folder at `parts`, e.g. `resource("templates", "chat", "smollm2.jinja")`.

    Raises:
        UsageError: there is no such file.
    """
    package = files("sdft_cli")
    candidates = [package.joinpath(*parts)]
    if isinstance(package, Path):
        candidates.append(package.parent.joinpath(*parts))
    for candidate in candidates:
        if candidate.is_file() or candidate.is_dir():
            return candidate
    raise UsageError(f"{'/'.join(parts)} does not ship with sdft: check the name.")


def resource_text(*parts: str) -> str:
    """Return the text of a shipped file."""
    return resource(*parts).read_text(encoding="utf-8")


def text_hash(text: str) -> str:
    """Return the hex sha256 of a text, as manifests record it."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
