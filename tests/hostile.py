"""Strings that try to steer a terminal, a page, a shell or a reader, and sessions with them in every field."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

HOSTILE = {
    "html": "<img src=x onerror=alert(1)><b>bold",
    "script": "</script><script>alert(1)</script>",
    "colour": "\x1b[31mred\x1b[0m",
    "title": "\x1b]0;owned\x07",
    "clear": "\x1b[2J\x1b[H",
    "c1": "\x9b31mred\x85",
    "bell": "a\x07\x08\x7fb",
    "return": "good\rbad",
    "markup": "[bold red]x[/bold red][/foo][link=file:///]",
    "rtl": "abc\u202egnp.exe\u202c\u2066x\u2069",
    "hidden": "a\u200bb\ufeffc\u00ad",
    "nul": "a\x00b",
    "half": "\ud800x",
    "lines": "a\u2028b\u2029c\n---\nx: y",
    "markdown": "|a|b|`c``d` *e* ](f)",
    "template": "{{ 7 * 7 }}{% raw %}${HOME}`id`$(id)",
    "path": "../../etc/passwd",
    "long": "word " * 200_000,
}
FORBIDDEN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
"""What no command may print: control characters but the end of a line, and what hides or reorders text."""


def session_lines(session: str, text: str) -> list[dict[str, Any]]:
    """Return a Claude Code session of four lines with `text` in all of its fields."""
    call = f"call {text}"[:200]
    common = {"sessionId": session, "version": text[:200], "cwd": text[:200], "gitBranch": text[:200]}
    use = {"type": "tool_use", "id": call, "name": text[:200], "input": {text[:200]: text}}
    result = {"type": "tool_result", "tool_use_id": call, "content": text}
    rows: list[dict[str, Any]] = [
        {"type": "user", "message": {"role": "user", "content": text}},
        {"type": "assistant", "message": {"role": "assistant", "model": text[:200], "content": [use]}},
        {"type": "user", "message": {"role": "user", "content": [result]}},
        {"type": "assistant", "message": {"role": "assistant", "content": [{"type": "text", "text": f"said {text}"}]}},
        {"type": f"type {text[:200]}", "content": text},
    ]
    ids = [f"{session}-{number}" for number in range(len(rows))]
    links = [{"uuid": own, "parentUuid": before} for own, before in zip(ids, [None, *ids[:-1]], strict=True)]
    return [{**row, **common, **link} for row, link in zip(rows, links, strict=True)]


def write_hostile_sessions(folder: Path) -> None:
    """Write one session per string; files have hostile names, too, where the file system takes them."""
    folder.mkdir(parents=True)
    for name, text in HOSTILE.items():
        stem = name if name in ("nul", "half", "path", "long", "template") else text.replace("/", "_")[:60]
        lines = (json.dumps(line) for line in session_lines(f"{name} {text[:50]}", text))
        (folder / f"{stem}.jsonl").write_text("\n".join(lines) + "\n")
