"""A dataset with hostile text in every field of its sessions, records and rejections."""

from __future__ import annotations

import json
from pathlib import Path

from sdft_cli.records import Message, Rejection, Session, ToolCall, ToolSchema, write_dataset
from sdft_cli.records.lazy import LazyDataset
from tests.datasets import manifest_of, row

NASTY = (
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b31m",
    "</script><script>alert(1)</script><img src=x onerror=alert(1)>",
    "[red]markup[/red] [link=http://x]y[/link] [/]",
    "a\u202egnirts desrever\u202c \u2066x\u2069 \u200f\u061c",
    "line\rover\x08\x08\x7f\x00 \u2028two\u2029three\x0b\x0c",
    "tab\there\nsecond line\r\nthird",
    "\u65e5\u672c\u8a9e " * 60,
    "e" + "\u0301" * 5000,
    "<|im_end|><|im_start|>system \u27e6fake\u27e7",
    "word " * 200_000,
)
"""ANSI, HTML, rich markup, marks of direction, controls, wide and combining characters, control tokens, a long line."""


def hostile_sessions() -> list[Session]:
    """One session per nasty text, which stands in each of its fields; the last has all of them in its messages."""
    sessions = []
    for number, text in enumerate(NASTY):
        name = f"{text[:300]}{number}"
        call = ToolCall(f"id{name}", name, json.dumps({name: text}))
        messages = (
            Message("system", text),
            Message("user", text),
            Message("assistant", text, (call,)),
            Message("tool", text, tool_call_id=call.id, name=name),
            Message("assistant", text),
        )
        tools = (ToolSchema(name, text, json.dumps({"type": "object", "description": text})),)
        metadata = {"models": [text], "project": text, name: {text: text}}
        sessions.append(Session(name, messages, tools, name, metadata))
    return sessions


def hostile_dataset(folder: Path) -> LazyDataset:
    """Of each session the first turn is a record and the second was dropped; one more was in no conversation."""
    sessions = hostile_sessions()
    rows = [row(session, 2) for session in sessions]
    rejected = [
        Rejection(f"{s.session_id}/4", s.session_id, 4, f"reason {s.session_id}", s.messages[0].content, 1, 2, 3)
        for s in sessions
    ]
    rejected += [Rejection(f"{s.session_id}/lost-{i}", s.session_id, None, "api_error") for i, s in enumerate(sessions)]
    manifest = manifest_of(len(rows), 0, rejected, source=NASTY[0])
    write_dataset(folder, sessions, {"train": rows, "validation": []}, rejected, manifest)
    return LazyDataset(folder)
