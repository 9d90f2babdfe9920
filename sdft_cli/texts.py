"""Text that people write, files and YAML: what is wrong with it is told in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdft_cli.errors import UsageError


def read_text(path: Path, what: str, advice: str = "check the path") -> str:
    """Return a file's text, without a byte order mark.

    Args:
        path: the file.
        what: what it is, as the sentence begins: "Profile".
        advice: the next step.

    Raises:
        UsageError: it does not exist, cannot be read, or is no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        told = (error.strerror or type(error).__name__).lower() if isinstance(error, OSError) else "it is no UTF-8 text"
        raise UsageError(f"{what} {path} cannot be read ({told}): {advice}.") from error


def is_unicode(text: str) -> bool:
    """Say whether UTF-8 can hold a text: bytes of a command line or a pipe that are none become lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_unicode(text: str, what: str) -> str:
    """Return a text; raises `UsageError`, which names it, where it is not `is_unicode`."""
    if not is_unicode(text):
        raise UsageError(f"{what} is no UTF-8 text: convert it first.")
    return text


def parse_yaml(text: str) -> Any:
    """Return what a YAML text holds.

    Raises:
        ValueError: it is no YAML, or a value of it is none, e.g. a date in a 13th month; says where and what.
    """
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f"line {where.line + 1}: " if where else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be parsed"
        raise ValueError(f"{line}{problem}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    except (AttributeError, LookupError, TypeError) as error:  # `!!bool x`, `!!int ''`: a tag that its value is none of
        raise ValueError("a value is not what its tag says") from error
