"""What would a file give away? Searched as redaction searches sessions, and left as it is.

A file that cannot be searched is as bad as one with a find.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdft_cli.errors import VerificationError
from sdft_cli.redaction.redactor import Redactor


def kinds_in(path: Path, redactor: Redactor) -> Counter[str]:
    """Count what a text file gives away, by kind: in its text and, of JSON, in each string with its key.

    The vocabulary and the merges of a `tokenizer.json` are left out: tokens are no prose. Raises `VerificationError`
    where it is no UTF-8 text, no JSON under that name, or the search failed.
    """
    cannot = f"{path.name} cannot be searched for secrets"
    try:
        text = path.read_bytes().decode("utf-8")
        document = json.loads(text) if path.suffix == ".json" else None
    except (OSError, ValueError) as error:
        raise VerificationError(f"{cannot} ({type(error).__name__}): it is no text that can be read.") from error
    if path.name == "tokenizer.json":
        document = _without_vocabulary(document)
        text = json.dumps(document, ensure_ascii=False)
    try:
        counts = redactor.kinds(text)
        for value, name in set(_strings(document, "")):
            counts |= redactor.kinds(value, name)  # the same find, read with its key or without
    except Exception as error:  # whatever the scanner's library raises: unsearched is not clean
        raise VerificationError(f"{cannot} ({type(error).__name__}): the scanner failed.") from error
    return counts


def _without_vocabulary(document: Any) -> Any:
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        return document
    model = {key: value for key, value in document["model"].items() if key not in ("vocab", "merges")}
    return {**document, "model": model}


def _strings(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield every string of a JSON document with the key that it stands under; keys are strings too."""
    if isinstance(value, str):
        yield value, name
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key, ""
            yield from _strings(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, name)
