"""The data of the SDFT paper (arXiv 2601.19897): a prompt and the expert's answer per row -> sessions of one turn.

The authors' repository (github.com/idanshen/Self-Distillation) has two shapes:

- tool use: `prompt` (text) and `golden_response` (a list of texts, joined by line breaks as the authors' trainer does);
- science and medicine: `messages` (system and user) and `output_text`.

An answer in the style `Action: ... Action Input: ...` stays prose: it is what their student is trained to write.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sdft_cli.records import Message, Session
from sdft_cli.resources import text_hash
from sdft_cli.traces import messages
from sdft_cli.traces.types import ReadReport

FORMAT = "golden"
_ANSWERS = ("golden_response", "output_text")
_PROMPTS = ("messages", "prompt")
_SYSTEM = ("system", "system_prompt")


def _value(row: dict[str, Any], keys: tuple[str, ...]) -> tuple[str, Any]:
    """Return the first of these columns that the row has, with its value; a Parquet row drops empty columns."""
    return next(((key, row[key]) for key in keys if row.get(key) is not None), ("", None))


def looks_like(objects: Iterable[dict[str, Any]]) -> bool:
    """Say whether these first objects are rows of a prompt, not yet answered, and an expert's answer."""

    def answered(prompt: Any) -> bool:
        return isinstance(prompt, list) and any(isinstance(m, dict) and m.get("role") == "assistant" for m in prompt)

    return any(_value(row, _ANSWERS)[0] and (p := _value(row, _PROMPTS))[0] and not answered(p[1]) for row in objects)


def _answer(row: dict[str, Any]) -> str:
    key, value = _value(row, _ANSWERS)
    if not key:
        raise ValueError(f"neither {' nor '.join(_ANSWERS)}")
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, str) for part in parts):
        raise ValueError(f"{key} is neither a text nor a list of texts")
    text = "\n".join(parts)
    if not text.strip():
        raise ValueError(f"{key} is empty")
    return text


def _prompt(row: dict[str, Any], name: str, report: ReadReport) -> tuple[Message, ...]:
    key, value = _value(row, _PROMPTS)
    if not key:
        raise ValueError(f"neither {' nor '.join(_PROMPTS)}")
    if key == "prompt" and isinstance(value, str):
        value = [{"role": "user", "content": value}]
    prompt = messages.session_of({"messages": value}, name, report).messages
    if not any(m.role == "user" and m.content.strip() for m in prompt):
        raise ValueError(f"{key} holds no user message")
    if prompt[-1].role == "assistant":
        raise ValueError(f"{key} already ends in an answer")
    key, system = _value(row, _SYSTEM)
    if isinstance(system, str) and system.strip() and prompt[0].role != "system":
        prompt = (Message("system", system), *prompt)
    return prompt


def session_of(row: dict[str, Any], name: str, report: ReadReport) -> Session:
    """Turn one row into a session whose last message is the expert's answer.

    Rows with the same prompt share a group, so that they never straddle the split. Raises ValueError, TypeError or
    KeyError if the row has no prompt, no answer, or a wrong shape.
    """
    prompt = _prompt(row, name, report)
    session_id = str(row.get("session_id") or row.get("id") or name)
    group = f"prompt-{text_hash(repr(prompt))[:16]}"
    messages_and_answer = (*prompt, Message("assistant", _answer(row)))
    return Session(session_id, messages_and_answer, group=group, metadata={"format": FORMAT, "file": name})
