"""The reader against teich, which reads the same sessions for another purpose (one training row per file).

Both must find the same calls, words and reasoning in the same order. They differ in where a turn ends and in what is
no answer of a model; `docs/claude-code-sessions.md` explains each cause. Nothing else may differ.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from sdft_cli.records import Message
from sdft_cli.traces.claude_code.reader import read_claude_code

EXPLAINED = {
    "splits a message where a result stands between its calls": 88,
    "joins neighbouring messages": 1,
    "keeps API errors": 1,
    "drops what Claude Code wrote itself": 1,
    "keeps a default that Claude Code put first in an Edit": 130,
}


def squeeze(parts: list[str]) -> str:
    """All words without white space: teich strips and joins texts in its own way."""
    return "".join("".join(parts).split())


def our_turns(path: Path) -> tuple[list[Message], int]:
    """The turns of a model, without those that Claude Code wrote; and how many follow another turn directly."""
    turns: list[Message] = []
    neighbours = 0
    for session in read_claude_code(path).sessions:
        own = [m for m in session.messages if m.status not in ("synthetic", "repeated")]
        turns += [m for m in own if m.role == "assistant"]
        neighbours += sum(a.role == b.role == "assistant" for a, b in pairwise(own))
    return turns, neighbours


def their_turns(path: Path) -> tuple[list[dict[str, Any]], int]:
    """teich's turns without API errors, and how many of those there are."""
    converter = pytest.importorskip("teich.converter", reason="teich comes with the extra `traces`")
    (row,) = converter.convert_traces_to_training_data(path, skip_invalid_lines=True)
    turns = [m for m in row["messages"] if m["role"] == "assistant"]
    kept = [m for m in turns if not m.get("teich_provider_error") and not m.get("content", "").startswith("API Error")]
    return kept, len(turns) - len(kept)


def compare(path: Path, causes: Counter[str]) -> None:
    ours, neighbours = our_turns(path)
    theirs, errors = their_turns(path)
    our_calls = [(c.id, c.name, json.loads(c.arguments)) for m in ours for c in m.tool_calls]
    their_calls = [
        (c["id"], c["function"]["name"], c["function"]["arguments"]) for m in theirs for c in m.get("tool_calls") or []
    ]
    added = [i for i, (_, name, given) in enumerate(their_calls) if name == "Edit" and our_calls[i][2] != given]
    for i in added:
        assert list(their_calls[i][2].items()) == [("replace_all", False), *our_calls[i][2].items()]
    causes["keeps a default that Claude Code put first in an Edit"] += len(added)
    unchanged = [i for i in range(len(their_calls)) if i not in added]
    assert len(our_calls) == len(their_calls)
    assert [our_calls[i] for i in unchanged] == [their_calls[i] for i in unchanged]
    assert squeeze([m.content for m in ours]) == squeeze([m.get("content") or "" for m in theirs])
    assert squeeze([m.reasoning for m in ours]) == squeeze([m.get("reasoning_content") or "" for m in theirs])
    their_turn = {c["id"]: i for i, m in enumerate(theirs) for c in m.get("tool_calls") or []}
    splits = sum(len({their_turn[c.id] for c in m.tool_calls}) - 1 for m in ours if m.tool_calls)
    assert len(theirs) == len(ours) + splits - neighbours, path.name
    causes["splits a message where a result stands between its calls"] += splits
    causes["joins neighbouring messages"] += neighbours
    causes["keeps API errors"] += errors
    sessions = read_claude_code(path).sessions
    causes["drops what Claude Code wrote itself"] += sum(m.status == "synthetic" for s in sessions for m in s.messages)


def test_both_find_the_same_turns_in_the_real_sessions(shared_sessions: Path) -> None:
    causes: Counter[str] = Counter()
    tool_search = shared_sessions.parent / "other-agents" / "claude_code_with_tool_search.jsonl"
    for path in [*sorted(shared_sessions.glob("*.jsonl")), tool_search]:
        compare(path, causes)
    assert causes == EXPLAINED
