"""What the lines of a Claude Code file say beside the conversation: its version, and the tokens of a prompt."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from sdft_cli.traces.claude_code.lines import Line
from sdft_cli.traces.fields import text_of

TESTED_VERSIONS = (((2, 0, 0), (2, 1, 42)), ((2, 1, 260), (2, 1, 289)))
"""Ranges of versions, both ends included: the first by real sessions, the second by public descriptions alone."""
MOST_TOKENS = 100_000_000
"""More tokens than any prompt has: a larger number is no count."""
_USAGE = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
"""These three add up to the prompt: read from the cache, written to it, and neither."""


def is_tested(version: str) -> bool:
    """Say whether the reader was tested with files of this version."""
    found = re.match(r"(\d{1,6})\.(\d{1,6})\.(\d{1,6})", version, re.ASCII)
    number = tuple(map(int, found.groups())) if found else ()
    return any(first <= number <= last for first, last in TESTED_VERSIONS)


def untested_versions(lines: Iterable[Line]) -> Counter[str]:
    """Count the lines of versions that the reader was not tested with, as `version: 2.2.0`; lines may name none."""
    versions = Counter(text_of(line.data, "version") for line in lines)
    return Counter({f"version: {name}": n for name, n in versions.items() if name and not is_tested(name)})


def _sum_of(usage: Any) -> int | None:
    """Return the tokens of the prompt that a `usage` states; None if it is not one that a provider writes."""
    values = [usage.get(key) for key in _USAGE] if isinstance(usage, dict) else [None]
    counts = [0 if value is None else value for value in values]
    if any(type(count) is not int or not 0 <= count <= MOST_TOKENS for count in counts):  # a bool is no count
        return None
    return sum(counts) or None


def prompt_tokens(lines: Iterable[Line], notes: Counter[str]) -> int | None:
    """Return the tokens of the prompt that the model saw before an API message, by the provider's own count.

    `lines`: those of one message. Each states the usage again, and only `output_tokens` may grow; of different prompts
    the largest is taken (`contradictory_usage`). What cannot be a count is left out (`bad_usage`, by line). None: no
    line states it; Claude Code wrote the message itself; or a server tool answered in the middle of it, which counts
    the answer too.
    """
    lines = list(lines)
    blocks = [block for line in lines for block in line.blocks]
    synthetic = any(line.message.get("model") == "<synthetic>" for line in lines)
    if synthetic or any(text_of(block, "type").endswith("tool_result") for block in blocks):
        return None
    stated = [_sum_of(line.message["usage"]) for line in lines if line.message.get("usage") is not None]
    counts = {count for count in stated if count is not None}
    notes["bad_usage"] += stated.count(None)
    notes["contradictory_usage"] += len(counts) > 1
    return max(counts, default=None)
