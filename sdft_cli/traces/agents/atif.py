"""ATIF trajectories, the exchange format of Harbor: one JSON object with `schema_version` and `steps`.

A step of the agent is a turn, and its observation holds the results of its calls. An observation without a call (of an
agent that acts in its text) is what the agent was told next, so it becomes a message of the user.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sdft_cli.records import Message, Session
from sdft_cli.records.reasons import SYNTHETIC
from sdft_cli.traces.agents.calls import json_text, one_system, pair_calls, tool_call
from sdft_cli.traces.fields import IMAGE, object_of, objects_of, text_of
from sdft_cli.traces.messages import tools_of
from sdft_cli.traces.tools import none_offered
from sdft_cli.traces.types import ReadReport

FORMAT = "atif"
_VERSION = "ATIF-v1."
_MOST_DEPTH = 20
"""How deep subagents in subagents are followed."""


def looks_like(objects: Iterable[dict[str, Any]]) -> bool:
    """Say whether these first objects are ATIF trajectories of version 1."""
    return any(text_of(row, "schema_version").startswith(_VERSION) for row in objects)


def _text(content: Any, report: ReadReport) -> str:
    """Return a text, or the parts of one; a picture is a placeholder."""
    if not isinstance(content, list):
        return json_text(content, report.notes)
    texts = []
    for part in content:
        kind = text_of(part, "type")
        report.notes["images"] += kind == "image"
        report.notes["unknown_blocks"] += kind not in ("text", "image")
        texts += [text_of(part, "text")] if kind == "text" else [IMAGE] if kind == "image" else []
    return "\n".join(texts)


def _status(step: dict[str, Any]) -> str | None:
    """Say why a step of the agent is no reference: a copy of an earlier trajectory's, or not written by a model."""
    if step.get("is_copied_context") is True:
        return "repeated"
    return SYNTHETIC.key if step.get("llm_call_count") == 0 else None


def _messages(step: dict[str, Any], report: ReadReport) -> Iterator[Message]:
    text = _text(step.get("message"), report)
    source, results = step.get("source"), objects_of(object_of(step, "observation"), "results")
    if source == "agent":
        calls = [
            tool_call(raw.get("tool_call_id"), raw.get("function_name"), raw.get("arguments"), report.notes)
            for raw in objects_of(step, "tool_calls")
        ]
        reasoning = text_of(step, "reasoning_content")
        yield Message("assistant", text, tuple(calls), reasoning=reasoning, status=_status(step))
    elif source in ("user", "system"):
        if text.strip():
            yield Message("user" if source == "user" else "system", text)
    else:
        raise ValueError(f"source {source!r} of a step is unknown")
    for result in results:
        said = _text(result.get("content"), report)
        if text_of(result, "source_call_id"):
            yield Message("tool", said, tool_call_id=text_of(result, "source_call_id"))
        elif said.strip() and source == "agent":
            yield Message("user", said)
        else:
            report.notes["observations_without_call"] += 1


def sessions_of(row: dict[str, Any], name: str, report: ReadReport) -> list[Session]:
    """Turn a trajectory and those of its subagents into sessions of one group; ValueError if it is none."""
    return _sessions(row, name, report, "", 0)


def _sessions(row: dict[str, Any], name: str, report: ReadReport, group: str, depth: int) -> list[Session]:
    if not isinstance(row.get("steps"), list) or not text_of(row, "schema_version" if not depth else "trajectory_id"):
        raise ValueError("no ATIF trajectory: it has no steps or no version")
    steps = objects_of(row, "steps")
    if len(steps) != len(row["steps"]):
        raise ValueError("a step is no JSON object")
    run = text_of(row, "session_id")
    own = text_of(row, "trajectory_id")
    session_id = f"{group}/agent-{own}" if group else run or own or name
    found = [message for step in steps for message in _messages(step, report)]
    paired = [m for m in pair_calls(found, report.notes) if m is not None]
    agent = object_of(row, "agent")
    models = sorted({text_of(agent, "model_name"), *(text_of(step, "model_name") for step in steps)} - {""})
    metadata = {"format": FORMAT, "file": name, "models": models, "harness": text_of(agent, "name")}
    metadata.update(none_offered(agent.get("tool_definitions")))
    tools = tools_of(objects_of(agent, "tool_definitions"))
    sessions = [Session(session_id, tuple(one_system(paired, report.notes)), tools, group or session_id, metadata)]
    if depth < _MOST_DEPTH:
        for inner in objects_of(row, "subagent_trajectories"):
            sessions += _sessions(inner, name, report, group or session_id, depth + 1)
    return sessions
