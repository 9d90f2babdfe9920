"""Evaluation documents from made-up numbers, put together by the code that `sdft eval` uses."""

from __future__ import annotations

import random
from dataclasses import fields
from itertools import combinations
from typing import Any

from sdft_cli.config import EvalConfig
from sdft_cli.evaluation.differences import differences
from sdft_cli.evaluation.document import FORMAT, of_drift, of_questions, of_records
from sdft_cli.prompts.tool_scores import ToolScore

TOOL_FLAGS = [field.name for field in fields(ToolScore)]
CONFIG = EvalConfig(resamples=300).model_dump(mode="json")


def contender(kind: str, quality: float, seed: int, records: int = 24) -> dict[str, Any]:
    """A model that is better at the task, and further from the base, the higher its quality (0 for the base)."""
    noise = random.Random(seed)
    items = []
    for i in range(records):
        tool = i % 2 == 0
        good = noise.random() < 0.2 + quality
        items.append(
            {
                "record_id": f"s{i // 3}/{i}",
                "session_id": f"s{i // 3}",
                "group": f"s{i // 3}",
                "nll": 10.0 - 5 * quality + noise.random(),
                "reference_tokens": 10,
                "kl": 2.0 - quality,
                "rollout_tokens": 8,
                "finished": True,
                "text": "<b>answer</b>" + "." * (i % 4) * round(10 * quality),
                "flags": dict.fromkeys(TOOL_FLAGS, good) if tool else {},
                "chrf": None if tool else 30.0 + 10 * quality,
                "calls_unasked": False,
                "mentions_reference": False,
                "copied_share": 0.0,
                "unknown_paths": [],
                "tools": "Read" if tool else "",
                "position": "first turn" if i % 3 == 0 else "turns 2 to 4",
            }
        )
    drift = [
        {"prompt_id": f"p{i}", "kind": "k", "tokens": 5, "kl": quality * (i + 1) / 10, "same_top": 5, "entropy": 3.0}
        for i in range(6)
    ]
    drift = [{**row, "token_kl": [row["kl"] / 5]} for row in drift]
    replies = [{"question_id": f"q{i}", "kind": "k", "correct": i % 2 == 0, "text": "x"} for i in range(4)]
    return {"kind": kind, **of_records(items), "drift": of_drift(drift), "questions": of_questions(replies)}


def document(**models: tuple[str, float]) -> dict[str, Any]:
    """A document with a base and these models: name -> (kind, quality)."""
    found = {"base": contender("base", 0.0, 0)} | {n: contender(k, q, 1) for n, (k, q) in models.items()}
    return {
        "format": FORMAT,
        "config": CONFIG,
        "model": {"base": "m", "base_kind": "hub"},
        "dataset": {"name": "d", "source": {"name": "x"}, "validation_hash": "h"},
        "records": 24,
        "facts": {
            "sessions": 8,
            "groups": 7,
            "tool_turns": 12,
            "turns_over_the_cap": 3,
            "tool_turns_over_the_cap": 1,
            "tool_turns_that_the_syntax_cannot_represent": 2,
            "expert_unknown_path_share": 0.25,
            "chrf": "sacrebleu",
        },
        "contenders": found,
        "differences": {f"{b} - {a}": differences(found[b], found[a], 0.95, 300, 0) for a, b in combinations(found, 2)},
    }
