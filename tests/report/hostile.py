"""A dataset whose names try to be markup, HTML, YAML and Markdown."""

from __future__ import annotations

from pathlib import Path

from sdft_cli.records import Dataset, Message, Rejection, Session, ToolCall, ToolSchema
from tests.datasets import row, store

NAMES = ("[/foo]", "<script>alert(1)</script>", "a|b`c``d", "x\n---\nlicense: evil", "[bold]*_y_", "ok_name")
SOURCE = 'no: "yes"\n- |<img src=x onerror=alert(1)> `[/foo]`'


def hostile_dataset(folder: Path) -> Dataset:
    calls = tuple(ToolCall(f"c{i}", name, "{}") for i, name in enumerate(NAMES))
    messages = (Message("user", "a"), Message("assistant", "", calls), Message("user", "b"), Message("assistant", "c"))
    tools = tuple(ToolSchema(name, "", '{"type": "object"}') for name in NAMES)
    session = Session("s", messages, tools, "s")
    rejected = [Rejection("s/3", "s", 3, "over_prompt_cap", "", 200, 210, 4)]
    return store(folder, [session], [row(session, 1)], [], rejected, source=SOURCE)
