"""JSON documents, read and written whole."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdft_cli.errors import DataError
from sdft_cli.records.folders import write_text


def finite(document: Any) -> Any:
    """Return a document with null in the place of NaN and infinities, which JSON has no form for."""
    if isinstance(document, float):
        return document if math.isfinite(document) else None
    if isinstance(document, Mapping):
        return {key: finite(value) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [finite(value) for value in document]
    return document


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document, readable and with sorted keys, in one rename."""
    text = json.dumps(finite(document), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n", overwrite=True)


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """Read a JSON object; raises `DataError` with `advice` ("run `sdft eval` again") if it is missing or damaged."""
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): {advice}.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {advice}.") from error
    if not isinstance(document, dict):
        raise DataError(f"{path} is no JSON object: {advice}.")
    return document
