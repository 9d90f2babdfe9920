"""Sessions of Codex, Cursor, Droid, Hermes, OpenClaw and Pi -> `Session`, through the library teich (extra `traces`).

teich knows how each agent writes its sessions down. Its converter also strips texts, parses argument strings that look
like JSON, drops some messages, and reads a tree of lines as if it were a list. So it is given the structure only:

1. `cut_contexts` picks the lines that the model saw: the path to the last line of a tree, cut at compactions.
2. `Vault` replaces every text by a token. teich arranges the tokens, and then the texts take their places again, so
   they come back exactly. A token that does not come back is a text that teich dropped: it is counted.
3. `_messages` joins the leading system messages into one, and `pair_calls` gives every tool result its call.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from sdft_cli.errors import DataError, MissingPackage
from sdft_cli.records import Message, Rejection, Session, ToolCall, ToolSchema
from sdft_cli.records.reasons import ABANDONED_BRANCH, API_ERROR, INTERRUPTED
from sdft_cli.traces.agents.calls import one_system, pair_calls
from sdft_cli.traces.agents.teich_lines import HEADERS, AgentLine, cut_contexts, tree_path, without_rolled_back
from sdft_cli.traces.agents.teich_texts import Vault, as_object, protected_events
from sdft_cli.traces.fields import name_of
from sdft_cli.traces.messages import tools_of
from sdft_cli.traces.rows import Rows
from sdft_cli.traces.tools import infer_schema
from sdft_cli.traces.types import FileSessions, ReadReport

OTHER_AGENTS = {name.lower(): name for name in ("Codex", "Cursor", "Droid", "Hermes", "OpenClaw", "Pi")}
"""The formats that are read here, with the names of their agents."""
_CODEX_LINES = ("session_meta", "turn_context", "response_item", "event_msg", "compacted")
_CODEX_OUTPUTS = ("function_call_output", "custom_tool_call_output")
_CODEX_ITEMS = ("message", "reasoning", "function_call", "custom_tool_call", *_CODEX_OUTPUTS)
_TREES = ("droid", "openclaw", "pi")
_KINDS = frozenset(
    {*_CODEX_LINES, *HEADERS, "model_change", "thinking_level_change", "session_info", "custom", "custom_message"}
    | {"label", "branch_summary", "todo_state", "turn_ended", "cursor_session_meta", "cursor_available_tools"}
    | {"hermes_session_meta", "external_session_meta"}
)
_ROLES = ("system", "user", "assistant", "tool")
_STATUS = {"error": API_ERROR.key, "aborted": INTERRUPTED.key}


def _is_hermes(row: dict[str, Any]) -> bool:
    """A Hermes export (one session per row), a ShareGPT row with `traces`, or a line of a Hermes event file."""
    exported = isinstance(row.get("messages"), list) and "system_prompt" in row and "started_at" in row
    traces = row.get("traces")
    shared = isinstance(traces, list) and bool(traces) and isinstance(traces[0], dict) and "from" in traces[0]
    return exported or shared or row.get("type") == "hermes_session_meta"


def detect(objects: Iterable[dict[str, Any]]) -> str | None:
    """Name the agent that wrote these first lines of a file, or None; needs no teich."""
    for row in objects:
        kind, message = row.get("type"), row.get("message")
        if _is_hermes(row):
            return "hermes"
        if kind in _CODEX_LINES and isinstance(row.get("payload"), dict):
            return "codex"
        if kind in _CODEX_ITEMS and not isinstance(message, dict) and ("role" in row or "call_id" in row):
            return "codex"
        if kind in ("cursor_session_meta", "cursor_available_tools"):
            return "cursor"
        if kind is None and isinstance(message, dict) and row.get("role") in ("user", "assistant"):
            return "cursor"
        if kind == "session_start" and "version" in row:
            return "droid"
        if kind == "session" and isinstance(row.get("cwd"), str):
            return "openclaw" if ".openclaw" in row["cwd"] else "pi"
    return None


def _modern(data: dict[str, Any]) -> dict[str, Any]:
    """Give a line of an early Codex session the envelope that later versions write."""
    if "payload" in data or "record_type" in data:
        return data
    return {"type": "response_item" if "type" in data else "session_meta", "payload": data}


def _teich(agent: str) -> Callable[[Path], Any]:
    try:
        from teich import convert_trace_to_training_example
    except ImportError as error:
        raise MissingPackage(f"A session of {OTHER_AGENTS[agent]}", "teich") from error
    return convert_trace_to_training_example  # type: ignore[no-any-return]


def _convert(agent: str, events: Sequence[dict[str, Any]], name: str) -> Any:
    """Let teich convert one context, from a file, since it reads files; raises `DataError` where it cannot."""
    convert = _teich(agent)
    if agent == "cursor" and not any(str(event.get("type")).startswith("cursor_") for event in events):
        events = [{"type": "cursor_session_meta"}, *events]  # else teich takes Cursor's own transcripts for Hermes'
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{Path(name).stem}.jsonl"
        path.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
        try:
            example = convert(path)
        except Exception as error:  # teich does not document what it raises on a damaged session
            raise DataError(
                f"{name} looks like a session of {OTHER_AGENTS[agent]} but cannot be read ({type(error).__name__}): "
                "check the file, or leave it out."
            ) from error
    trace_type = str(example.metadata.get("trace_type")).replace("_", "-")
    if trace_type != agent:
        raise DataError(
            f"{name} looks like a session of {OTHER_AGENTS[agent]} but teich reads it as {trace_type}: leave it out."
        )
    return example


def _call(raw: dict[str, Any], vault: Vault) -> ToolCall:
    arguments = vault.arguments(raw["function"].get("arguments"))
    value = as_object(arguments)
    if value is None:
        vault.notes["non_object_arguments"] += 1
    return ToolCall(str(raw.get("id")), str(raw["function"]["name"]), json.dumps(value or {}, ensure_ascii=False))


def _message(raw: dict[str, Any], vault: Vault) -> Message | None:
    """Turn one of teich's messages into ours, with its texts put back; None if its role is unknown."""
    role, tokens = raw.get("role"), str(raw.get("content") or "")
    if role not in _ROLES:
        vault.notes["unknown_roles"] += 1
        return None
    calls = raw.get("tool_calls") or ()
    lines = vault.lines(tokens + json.dumps(calls, ensure_ascii=False) + str(raw.get("reasoning_content") or ""))
    stops = {_STATUS.get(str(x.body.get("stopReason"))) for x in lines} - {None}
    status = "repeated" if any(x.repeated for x in lines) else next(iter(sorted(map(str, stops))), None)
    if role == "tool":
        result = vault.result_lines.get(str(raw.get("tool_call_id")))
        return Message(
            "tool",
            vault.text(tokens),
            tool_call_id=raw.get("tool_call_id"),
            name=raw.get("name"),
            status="repeated" if result is not None and result.repeated else None,
        )
    return Message(
        role,
        vault.text(tokens),
        tuple(_call(call, vault) for call in calls),
        reasoning=vault.text(str(raw.get("reasoning_content") or "")) if role == "assistant" else "",
        status=status if role == "assistant" else None,
    )


def _messages(example: Any, agent: str, vault: Vault) -> list[Message]:
    """Return the messages of a context; leading system messages are joined, since templates take one."""
    messages = [m for m in (_message(raw, vault) for raw in example.messages) if m is not None]
    prompt = example.system or (example.metadata.get("system_prompt") if agent == "hermes" else None)
    if isinstance(prompt, str) and prompt.strip() and not any(m.role == "system" for m in messages[:1]):
        messages.insert(0, Message("system", prompt))
    return [m for m in pair_calls(one_system(messages, vault.notes), vault.notes) if m is not None]


def _given_tools(
    lines: Sequence[AgentLine], messages: Sequence[Message], notes: Counter[str]
) -> tuple[ToolSchema, ...]:
    """Return the tools that the trace itself lists, completed by those that are called; empty if it lists none."""
    tools: dict[str, ToolSchema] = {}
    for line in lines:
        data = line.data
        for holder in (data, data.get("payload"), data.get("data"), data.get("metadata")):
            for key in ("tools", "available_tools"):
                raw = holder.get(key) if isinstance(holder, dict) else None
                tools.update((tool.name, tool) for tool in tools_of(raw if isinstance(raw, list) else ()))
    calls = [call for m in messages for call in m.tool_calls]
    for name in sorted({c.name for c in calls} - set(tools)) if tools else ():
        notes["tools_called_but_not_listed"] += 1
        tools[name] = infer_schema(name, [c for c in calls if c.name == name])
    return tuple(tools.values())


def _reason(line: AgentLine, vaults: Sequence[Vault], used: set[int]) -> str:
    """Name what became of a line that is on the path."""
    data, body = line.data, line.body
    kind = str(data.get("type"))
    if id(line) in used or kind in ("compaction", "compaction_state"):
        return "conversation" if id(line) in used else "compaction"
    if body.get("type") == "reasoning":
        return "reasoning_without_text"
    if kind == "response_item" and body.get("type") not in _CODEX_ITEMS:
        return "unread_item"
    if kind in _KINDS and kind != "response_item":
        return kind
    if body.get("visibility") == "user_only":
        return "user_only"
    if any(owner is line for vault in vaults for owner in vault.owners):
        return "not_converted"
    return "empty" if body.get("role") or kind == "response_item" else "unknown_type"


def _lost_turns(lines: Sequence[AgentLine], base: str, agent: str) -> list[Rejection]:
    """One rejection per abandoned assistant turn; in Codex, a turn is a run of texts and calls."""
    turns = [
        x for i, x in enumerate(lines) if x.is_assistant and not (agent == "codex" and i and lines[i - 1].is_assistant)
    ]
    return [
        Rejection(f"{base}/abandoned-{x.data.get('id') or x.name}", base, None, ABANDONED_BRANCH.key) for x in turns
    ]


def _group(lines: Sequence[AgentLine], session_id: str) -> str:
    """Return the session that this one was forked from or continues, else its own id."""
    for line in lines[:1]:
        for holder in (line.data, line.body):
            for key in ("forked_from_id", "parent_session_id", "parentSession"):
                if isinstance(holder.get(key), str) and holder[key]:
                    return Path(str(holder[key]).replace("\\", "/")).stem.split("_")[-1]
    return session_id


def _without_inactive(line: AgentLine, report: ReadReport) -> AgentLine:
    """Take out the messages of a Hermes export that its user rewound (`active: 0`)."""
    messages = line.data.get("messages")
    if not isinstance(messages, list):
        return line
    active = [m for m in messages if not (isinstance(m, dict) and m.get("active") in (0, False))]
    report.notes["rewound_messages"] += len(messages) - len(active)
    session = str(line.data.get("id") or line.name)
    report.lost_turns += [
        Rejection(f"{session}/abandoned-{m.get('id') or i}", session, None, ABANDONED_BRANCH.key)
        for i, m in enumerate(messages)
        if m not in active and m.get("role") == "assistant"
    ]
    return AgentLine(line.name, {**line.data, "messages": active})


def _read_unit(agent: str, lines: list[AgentLine], path: Path, report: ReadReport) -> list[Session]:
    """Read the lines of one session: one `Session` per context with an assistant turn."""
    if agent == "hermes":
        lines = [_without_inactive(line, report) for line in lines]
    path_lines, abandoned = tree_path(lines, report) if agent in _TREES else without_rolled_back(lines)
    sessions: list[Session] = []
    vaults: list[Vault] = []
    used: set[int] = set()
    base = str(lines[0].data.get("id") or "") if agent == "hermes" else ""
    for context in cut_contexts(path_lines, report.notes):
        vault = Vault(report.notes)
        vaults.append(vault)
        example = _convert(agent, protected_events(context, vault), name_of(path))
        base = base or str(example.metadata.get("session_id"))
        messages = _messages(example, agent, vault)
        used |= {id(vault.owners[i]) for i in vault.used}
        used |= {id(x) for raw in example.messages for x in [vault.result_lines.get(str(raw.get("tool_call_id")))] if x}
        report.notes["texts_not_converted"] += vault.lost()
        if not any(m.role == "assistant" and m.status != "repeated" for m in messages):
            report.notes["contexts_without_turns"] += 1
            continue
        models = [str(example.metadata["model"])] if example.metadata.get("model") else []
        number = len(sessions) + 1
        sessions.append(
            Session(
                base if number == 1 else f"{base}#{number}",
                tuple(messages),
                _given_tools(context, messages, report.notes),
                _group(lines, base),
                {"format": agent, "file": name_of(path), "models": models, "context": number},
            )
        )
    report.lost_turns += _lost_turns(abandoned, base, agent)
    dropped = {id(line) for line in abandoned}
    report.lines.update("abandoned" if id(x) in dropped else _reason(x, vaults, used) for x in lines)
    return sessions


def read_other_agent(path: Path, agent: str, rows: Rows) -> FileSessions:
    """Read the rows of a file of another agent's sessions; `agent` is what `detect` returned.

    Raises `MachineError` if teich is not installed, `DataError` if it cannot read a session or finds another agent's.
    """
    report = ReadReport()
    lines: list[AgentLine] = []
    for name, data in rows:
        if data is None:
            report.lines["broken"] += 1
            report.broken.append(name)
        else:
            lines.append(AgentLine(name, _modern(data) if agent == "codex" else data))
    rowwise = agent == "hermes" and all("messages" in x.data or "traces" in x.data for x in lines)
    units = [[line] for line in lines] if rowwise else [lines]
    sessions = [session for unit in units for session in _read_unit(agent, unit, path, report)]
    return FileSessions(sessions, report)
