"""Sessions of Codex, Cursor, Droid, Hermes, OpenClaw and Pi -> `Session`, through the library teich (extra `traces`).

teich knows how each agent writes its sessions down. Its converter also strips texts, parses argument strings that look
like JSON, drops some messages, and reads a tree of lines as if it were a list. So it is given the structure only:

1. `_contexts` picks the lines that the model saw: the path to the last line of a tree, cut at compactions.
2. `_Vault` replaces every text by a token. teich arranges the tokens, and then the texts take their places again, so
   they come back exactly. A token that does not come back is a text that teich dropped: it is counted.
3. `_messages` gives every tool result its call, and joins the leading system messages into one.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sdft_cli.errors import DataError, MachineError
from sdft_cli.records import Message, Rejection, Session, ToolCall, ToolSchema
from sdft_cli.traces.claude_code import ABANDONED, IMAGE_PLACEHOLDER
from sdft_cli.traces.messages import tools_of
from sdft_cli.traces.tools import infer_schema
from sdft_cli.traces.types import OTHER_AGENTS, FileSessions, ReadReport

Rows = Iterable[tuple[str, dict[str, Any] | None]]
"""Named lines (or rows) of a file; None where a line is no JSON object."""

_CODEX_LINES = ("session_meta", "turn_context", "response_item", "event_msg", "compacted")
_CODEX_CALLS = ("function_call", "custom_tool_call", "local_shell_call", "web_search_call")
_TREES = ("droid", "openclaw", "pi")
_HEADERS = ("session", "session_start")
_KINDS = frozenset(
    {*_CODEX_LINES, *_HEADERS, "model_change", "thinking_level_change", "session_info", "custom", "custom_message"}
    | {"label", "branch_summary", "todo_state", "turn_ended", "cursor_session_meta", "cursor_available_tools"}
    | {"hermes_session_meta", "external_session_meta"}
)
_TEXTS = ("text", "thinking", "content", "output", "reasoning_content", "reasoning")
_CONTAINERS = frozenset(
    {"message", "payload", "content", "summary", "messages", "tool_calls", "function", "output", "traces"}
    | {"base_instructions"}
)
_REASONING = ("thinking", "reasoning", "reasoning_content", "reasoning_text", "summary_text")
_IMAGES = ("image", "input_image", "image_url")
_RESULT_IDS = ("toolCallId", "tool_use_id", "tool_call_id")
_ROLES = ("system", "user", "assistant", "tool")
_STATUS = {"error": "api_error", "aborted": "interrupted"}
_TOKEN = re.compile("\ue000(\\d+)\ue001")
_MARKUP = re.compile(r"<(think|tool_call|tool_response)>(.*?)</\1>", re.DOTALL)
_THINKING = re.compile(r"<(think)>(.*?)</\1>", re.DOTALL)
_ARGUMENTS = "sdft_arguments"


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
        if kind in ("cursor_session_meta", "cursor_available_tools"):
            return "cursor"
        if kind is None and isinstance(message, dict) and row.get("role") in ("user", "assistant"):
            return "cursor"
        if kind == "session_start" and "version" in row:
            return "droid"
        if kind == "session" and isinstance(row.get("cwd"), str):
            return "openclaw" if ".openclaw" in row["cwd"] else "pi"
    return None


def _teich(agent: str) -> Callable[[Path], Any]:
    try:
        from teich import convert_trace_to_training_example
    except ImportError as error:
        raise MachineError(
            f'This is a session of {OTHER_AGENTS[agent]}, which needs teich: pip install "sdft-cli[traces]"'
        ) from error
    return convert_trace_to_training_example  # type: ignore[no-any-return]


@dataclass
class _Line:
    """A line of the file, or one that stands for a summary (`name` empty)."""

    name: str
    data: dict[str, Any]
    repeated: bool = False
    """Context that an earlier context of the same session holds already."""

    @property
    def body(self) -> dict[str, Any]:
        value = self.data.get("payload") or self.data.get("message")
        return value if isinstance(value, dict) else self.data

    @property
    def is_assistant(self) -> bool:
        return self.body.get("role") == "assistant" or self.body.get("type") in _CODEX_CALLS


@dataclass
class _Vault:
    """The texts that were replaced by tokens, the line each came from, and the tokens that came back."""

    notes: Counter[str]
    values: list[Any] = field(default_factory=list)
    owners: list[_Line] = field(default_factory=list)
    reasoning: set[int] = field(default_factory=set)
    used: set[int] = field(default_factory=set)
    known: dict[tuple[int, str], int] = field(default_factory=dict)
    result_lines: dict[str, _Line] = field(default_factory=dict)

    def keep(self, value: Any, line: _Line, reasoning: bool = False) -> str:
        """Store a text (or the arguments of a call) and return its token; a line's equal texts share one."""
        key = (id(line), value if isinstance(value, str) else f"arguments {len(self.values)}")
        number = self.known.setdefault(key, len(self.values))
        if number == len(self.values):
            self.values.append(value)
            self.owners.append(line)
            if reasoning:
                self.reasoning.add(number)
        return f"\ue000{number}\ue001"

    def value(self, match: re.Match[str]) -> Any:
        number = int(match.group(1))
        self.used.add(number)
        return self.values[number]

    def text(self, text: str) -> str:
        """Put the texts back into a string of tokens."""
        return _TOKEN.sub(lambda match: str(self.value(match)), text)

    def lines(self, text: str) -> list[_Line]:
        """Return the lines that the tokens of a string came from."""
        return [self.owners[int(number)] for number in _TOKEN.findall(text)]

    def arguments(self, value: Any) -> Any:
        """Put the arguments of a call back."""
        if isinstance(value, dict) and set(value) == {_ARGUMENTS}:
            match = _TOKEN.fullmatch(str(value[_ARGUMENTS]))
            return self.value(match) if match else value
        if isinstance(value, dict):
            return {key: self.arguments(item) for key, item in value.items()}
        return self.text(value) if isinstance(value, str) else value

    def lost(self) -> int:
        """Count the texts that did not come back; reasoning is dropped later anyway."""
        return len(set(range(len(self.values))) - self.used - self.reasoning)


def _object(value: Any) -> dict[str, Any] | None:
    """Return arguments as a dictionary, also where they are its JSON text; None if they are no object."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value if isinstance(value, dict) else None


def _kept_arguments(value: Any, line: _Line, vault: _Vault) -> Any:
    found = _object(value)
    if found is None:
        return value
    kept = {_ARGUMENTS: vault.keep(found, line)}
    return json.dumps(kept) if isinstance(value, str) else kept


def _markup(text: str, tags: re.Pattern[str], line: _Line, vault: _Vault) -> str:
    """Keep the parts of a Hermes text in which reasoning (and calls and results) are marked with tags."""

    def part(match: re.Match[str]) -> str:
        tag, inner = match.groups()
        found = _object(inner)
        if tag == "tool_call" and found is not None:
            inner = json.dumps({**found, "arguments": _kept_arguments(found.get("arguments") or {}, line, vault)})
        elif tag == "tool_response" and found is not None and isinstance(found.get("content"), str):
            inner = json.dumps({**found, "content": vault.keep(found["content"], line)})
        elif inner.strip():
            inner = vault.keep(inner, line, tag == "think")
        return f"<{tag}>{inner}</{tag}>"

    parts, end = [], 0
    for match in tags.finditer(text):
        parts += [text[end : match.start()], part(match)]
        end = match.end()
    parts.append(text[end:])
    return "".join(vault.keep(p, line) if i % 2 == 0 and p.strip() else p for i, p in enumerate(parts))


def _protect(value: Any, line: _Line, vault: _Vault, reasoning: bool = False) -> Any:
    """Return a copy of a line's conversation in which every text is a token."""
    if isinstance(value, list):
        return [_protect(item, line, vault, reasoning) for item in value]
    if not isinstance(value, dict):
        return value
    kind = str(value.get("type"))
    if kind in _IMAGES:
        vault.notes["images"] += 1
        return {"type": "text", "text": vault.keep(IMAGE_PLACEHOLDER, line)}
    for key in _RESULT_IDS:
        if isinstance(value.get(key), str):
            vault.result_lines[value[key]] = line
    if kind.endswith("_output") and isinstance(value.get("call_id"), str):
        vault.result_lines[value["call_id"]] = line
    found: dict[str, Any] = {}
    for key, item in value.items():
        hidden = reasoning or kind in _REASONING or key in _REASONING
        if kind == "custom_tool_call" and key == "input" and isinstance(item, str):
            found[key] = vault.keep(item, line)
        elif key in ("arguments", "input"):
            found[key] = _kept_arguments(item, line, vault)
        elif key == "value" and "from" in value and isinstance(item, str):
            found[key] = _markup(item, _MARKUP, line, vault)
        elif key == "content" and value.get("role") == "assistant" and isinstance(item, str) and "<think>" in item:
            found[key] = _markup(item, _THINKING, line, vault)
        elif key in _TEXTS and isinstance(item, str):
            found[key] = vault.keep(item, line, hidden) if item.strip() else item
        else:
            found[key] = _protect(item, line, vault, hidden) if key in _CONTAINERS else item
    return found


def _split_results(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Split a user line that holds tool results and text: teich reads only the results of such a line."""
    message = data.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(message, dict) or not isinstance(content, list):
        return [data]
    results = [b for b in content if isinstance(b, dict) and b.get("type") == "tool_result"]
    others = [b for b in content if b not in results]
    if not results or not others:
        return [data]
    return [{**data, "message": {**message, "content": part}} for part in (results, others)]


def _events(lines: Sequence[_Line], vault: _Vault) -> list[dict[str, Any]]:
    """Return what teich is given: the lines with their texts replaced."""
    found = []
    for line in lines:
        data = line.data
        if data.get("type") in ("event_msg", "turn_context") or data.get("type") in _HEADERS:
            found.append(data)
        elif line.body.get("visibility") != "user_only":  # Droid shows these to its user, not to the model
            found += [_protect(part, line, vault) for part in _split_results(data)]
    return found


def _tree(lines: Sequence[_Line], report: ReadReport) -> tuple[list[_Line], list[_Line]]:
    """Return the path from the root to the last line, and the lines on other branches.

    A parent is the nearest line above with that id, since Droid uses an id twice. Where there is none (a broken line),
    it is the line before. A file without parents is one path.
    """
    nodes = [x for x in lines if x.data.get("type") not in _HEADERS and isinstance(x.data.get("id"), str)]
    nodes = [x for x in nodes if "parentId" in x.data or x.data.get("type") == "message"]
    if not any(x.data.get("parentId") for x in nodes):
        return list(lines), []
    above: dict[str, int] = {}
    parents: list[int] = []
    for position, node in enumerate(nodes):
        parent = node.data.get("parentId")
        parents.append(above.get(str(parent), -2) if parent else -1)
        above[str(node.data["id"])] = position
    path: set[int] = set()
    current = len(nodes) - 1
    while current >= 0:
        path.add(id(nodes[current]))
        if parents[current] == -2:
            report.notes["repaired_links"] += 1
        current = current - 1 if parents[current] == -2 else parents[current]
    in_tree = {id(x) for x in nodes}
    kept = [x for x in lines if id(x) not in in_tree or id(x) in path]
    return kept, [x for x in nodes if id(x) not in path]


def _rolled_back(lines: Sequence[_Line]) -> tuple[list[_Line], list[_Line]]:
    """Take out the turns that Codex's `thread_rolled_back` events took back."""
    kept: list[_Line] = []
    dropped: list[_Line] = []
    for line in lines:
        kept.append(line)
        if line.data.get("type") == "event_msg" and line.body.get("type") == "thread_rolled_back":
            asked = [i for i, x in enumerate(kept) if _is_prompt(x)]
            turns = min(int(line.body.get("num_turns") or 0), len(asked))
            if turns:
                start = asked[-turns]
                dropped += [x for x in kept[start:-1] if x.data.get("type") == "response_item"]
                kept[start:-1] = [x for x in kept[start:-1] if x.data.get("type") != "response_item"]
    return kept, dropped


def _is_prompt(line: _Line) -> bool:
    """Say whether a Codex line is what the user typed, and no context that Codex wrote in the user's name."""
    if line.data.get("type") != "response_item" or line.body.get("role") != "user":
        return False
    text = json.dumps(line.body.get("content"), ensure_ascii=False)
    return not any(tag in text[:60] for tag in ("<environment_context>", "<user_instructions>"))


def _summary(line: _Line, kept: Sequence[_Line]) -> list[_Line]:
    """Return the lines that a new context begins with after a compaction: its summary and what it kept."""
    data, body = line.data, line.body
    if data.get("type") == "compacted":
        history = body.get("replacement_history")
        if not isinstance(history, list):
            content = [{"type": "input_text", "text": str(body.get("message") or "")}]
            history = [{"type": "message", "role": "user", "content": content}]
        return [_Line(line.name, {"type": "response_item", "payload": item}, True) for item in history]
    text = data.get("summary") or data.get("summaryText") or ""
    message = {"role": "user", "content": [{"type": "text", "text": str(text)}]}
    first = data.get("firstKeptEntryId")
    start = next((i for i, x in enumerate(kept) if first and x.data.get("id") == first), len(kept))
    again = [replace(x, repeated=True) for x in kept[start:]]
    return [_Line(line.name, {"type": "message", "message": message}, True), *again]


def _contexts(lines: Sequence[_Line], notes: Counter[str]) -> list[list[_Line]]:
    """Cut a conversation at its compactions; each context begins with the file's header lines."""
    headers = [x for x in lines if x.data.get("type") in ("session_meta", "turn_context", *_HEADERS)]
    contexts: list[list[_Line]] = [[]]
    for line in lines:
        if str(line.data.get("type")) in ("compacted", "compaction", "compaction_state"):
            notes["compactions"] += 1
            contexts.append([*headers, *_summary(line, contexts[-1])])
        else:
            contexts[-1].append(line)
    return contexts


def _convert(agent: str, events: Sequence[dict[str, Any]], name: str) -> Any:
    """Let teich convert one context; teich reads files, so the events are written to one.

    Raises:
        DataError: teich cannot read them.
    """
    convert = _teich(agent)
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
    found = str(example.metadata.get("trace_type")).replace("_", "-")
    if found != agent:
        raise DataError(
            f"{name} looks like a session of {OTHER_AGENTS[agent]} but teich reads it as {found}: leave it out."
        )
    return example


def _call(raw: dict[str, Any], vault: _Vault) -> ToolCall:
    arguments = vault.arguments(raw["function"].get("arguments"))
    found = _object(arguments)
    if found is None:
        vault.notes["non_object_arguments"] += 1
    return ToolCall(str(raw.get("id")), str(raw["function"]["name"]), json.dumps(found or {}, ensure_ascii=False))


def _message(raw: dict[str, Any], vault: _Vault) -> Message | None:
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


def _pair(messages: Sequence[Message], notes: Counter[str]) -> list[Message]:
    """Give every call an id of its own and every result the id of its call; drop and count results without a call.

    A result is matched by id, else by the name of the oldest open call: Hermes' ShareGPT rows give calls no ids.
    """
    taken: Counter[str] = Counter()
    waiting: list[tuple[str, ToolCall]] = []
    found: list[Message] = []
    for message in messages:
        if message.role == "tool":
            raw = message.tool_call_id
            match = next((w for w in waiting if w[0] == raw), None)
            match = match or next((w for w in waiting if w[1].name == message.name), None)
            if match is None:
                notes["orphan_tool_results"] += 1
                continue
            waiting.remove(match)
            found.append(replace(message, tool_call_id=match[1].id, name=match[1].name, status=None))
            continue
        calls = []
        for call in message.tool_calls:
            taken[call.id] += 1
            calls.append(call if taken[call.id] == 1 else replace(call, id=f"{call.id}~{taken[call.id]}"))
            waiting.append((call.id, calls[-1]))
        found.append(replace(message, tool_calls=tuple(calls)))
    notes["unanswered_calls"] += len(waiting)
    return found


def _messages(example: Any, agent: str, vault: _Vault) -> list[Message]:
    """Return the messages of a context; leading system messages are joined, since templates take one."""
    found = [m for m in (_message(raw, vault) for raw in example.messages) if m is not None]
    prompt = example.system or (example.metadata.get("system_prompt") if agent == "hermes" else None)
    if isinstance(prompt, str) and prompt.strip() and not any(m.role == "system" for m in found[:1]):
        found.insert(0, Message("system", prompt))
    leading = next((i for i, m in enumerate(found) if m.role != "system"), len(found))
    if leading > 1:
        vault.notes["joined_system_messages"] += leading
        found[:leading] = [Message("system", "\n\n".join(m.content for m in found[:leading]))]
    return _pair(found, vault.notes)


def _given_tools(lines: Sequence[_Line], messages: Sequence[Message], notes: Counter[str]) -> tuple[ToolSchema, ...]:
    """Return the tools that the trace itself lists, completed by those that are called; empty if it lists none."""
    found: dict[str, ToolSchema] = {}
    for line in lines:
        data = line.data
        for holder in (data, data.get("payload"), data.get("data"), data.get("metadata")):
            for key in ("tools", "available_tools"):
                raw = holder.get(key) if isinstance(holder, dict) else None
                found.update((tool.name, tool) for tool in tools_of(raw if isinstance(raw, list) else ()))
    calls = [call for m in messages for call in m.tool_calls]
    for name in sorted({c.name for c in calls} - set(found)) if found else ():
        notes["tools_called_but_not_listed"] += 1
        found[name] = infer_schema(name, [c for c in calls if c.name == name])
    return tuple(found.values())


def _reason(line: _Line, vaults: Sequence[_Vault], used: set[int]) -> str:
    """Name what became of a line that is on the path."""
    data, body = line.data, line.body
    kind = str(data.get("type"))
    if id(line) in used or kind in ("compaction", "compaction_state"):
        return "conversation" if id(line) in used else "compaction"
    if body.get("type") == "reasoning":
        return "reasoning_without_text"
    if kind in _KINDS and kind != "response_item":
        return kind
    if body.get("visibility") == "user_only":
        return "user_only"
    if any(owner is line for vault in vaults for owner in vault.owners):
        return "not_converted"
    return "empty" if body.get("role") or kind == "response_item" else "unknown_type"


def _lost_turns(lines: Sequence[_Line], base: str, agent: str) -> list[Rejection]:
    """One rejection per abandoned assistant turn; in Codex, a turn is a run of texts and calls."""
    turns = [
        x for i, x in enumerate(lines) if x.is_assistant and not (agent == "codex" and i and lines[i - 1].is_assistant)
    ]
    return [Rejection(f"{base}/abandoned-{x.data.get('id') or x.name}", base, None, ABANDONED) for x in turns]


def _group(lines: Sequence[_Line], session_id: str) -> str:
    """Return the session that this one was forked from or continues, else its own id."""
    for line in lines[:1]:
        for holder in (line.data, line.body):
            for key in ("forked_from_id", "parent_session_id", "parentSession"):
                if isinstance(holder.get(key), str) and holder[key]:
                    return Path(str(holder[key]).replace("\\", "/")).stem.split("_")[-1]
    return session_id


def _without_inactive(line: _Line, report: ReadReport) -> _Line:
    """Take out the messages of a Hermes export that its user rewound (`active: 0`)."""
    messages = line.data.get("messages")
    if not isinstance(messages, list):
        return line
    active = [m for m in messages if not (isinstance(m, dict) and m.get("active") in (0, False))]
    report.notes["rewound_messages"] += len(messages) - len(active)
    session = str(line.data.get("id") or line.name)
    report.lost_turns += [
        Rejection(f"{session}/abandoned-{m.get('id') or i}", session, None, ABANDONED)
        for i, m in enumerate(messages)
        if m not in active and m.get("role") == "assistant"
    ]
    return _Line(line.name, {**line.data, "messages": active})


def _read_unit(agent: str, lines: list[_Line], path: Path, report: ReadReport) -> list[Session]:
    """Read the lines of one session: one `Session` per context with an assistant turn."""
    if agent == "hermes":
        lines = [_without_inactive(line, report) for line in lines]
    path_lines, abandoned = _tree(lines, report) if agent in _TREES else _rolled_back(lines)
    sessions: list[Session] = []
    vaults: list[_Vault] = []
    used: set[int] = set()
    base = str(lines[0].data.get("id") or "") if agent == "hermes" else ""
    for context in _contexts(path_lines, report.notes):
        vault = _Vault(report.notes)
        vaults.append(vault)
        example = _convert(agent, _events(context, vault), path.name)
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
                {"format": agent, "file": path.name, "models": models, "context": number},
            )
        )
    report.lost_turns += _lost_turns(abandoned, base, agent)
    dropped = {id(line) for line in abandoned}
    report.lines.update("abandoned" if id(x) in dropped else _reason(x, vaults, used) for x in lines)
    return sessions


def read_other_agent(path: Path, agent: str, rows: Rows) -> FileSessions:
    """Read a file of another agent's sessions.

    Args:
        path: the file; only its name is used.
        agent: what `detect` returned.
        rows: its lines.

    Raises:
        MachineError: teich is not installed.
        DataError: teich cannot read the session, or finds another agent's.
    """
    report = ReadReport()
    lines: list[_Line] = []
    for name, data in rows:
        if data is None:
            report.lines["broken"] += 1
            report.broken.append(name)
        else:
            lines.append(_Line(name, data))
    rowwise = agent == "hermes" and all("messages" in x.data or "traces" in x.data for x in lines)
    units = [[line] for line in lines] if rowwise else [lines]
    sessions = [session for unit in units for session in _read_unit(agent, unit, path, report)]
    return FileSessions(sessions, report)
