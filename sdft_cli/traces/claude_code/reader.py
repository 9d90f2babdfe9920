"""Native Claude Code JSONL -> `Session`: one session per context that the model saw, and the fate of each line.

`docs/claude-code-sessions.md` has the reasons.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from sdft_cli.records import Message, Rejection, Session
from sdft_cli.records.reasons import ABANDONED_BRANCH, API_ERROR, SIDE_QUERY
from sdft_cli.traces.claude_code.facts import untested_versions
from sdft_cli.traces.claude_code.graph import Context, Graph
from sdft_cli.traces.claude_code.lines import Line, chains, group_of, read
from sdft_cli.traces.claude_code.prompts import Prompt, prompt_of
from sdft_cli.traces.claude_code.seen import SeenLines, up_to
from sdft_cli.traces.claude_code.writer import Writer
from sdft_cli.traces.fields import name_of, stem_of, text_of
from sdft_cli.traces.tools import OFFERED
from sdft_cli.traces.types import FileSessions, ReadReport

FORMAT = "claude-code"
_SIDE_QUERY = re.compile(
    r"a?(compact|prompt_suggestion|side_question|session_memory|agent_summary|away_summary|extract_memories|speculation)"
    r"-[0-9A-Za-z]+"
)
"""Ids of agents that Claude Code itself asks something: a closed list."""
_ASKED = re.compile(
    r"warmup|\[suggestion mode\b.*|your task is to create a detailed summary of the conversation.*", re.DOTALL
)
"""What agents without such an id are asked by Claude Code itself, in lower case: all of it, or how it begins."""
_REMINDER = re.compile(r"<system-reminder>.*?</system-reminder>", re.DOTALL)


def is_side_query(agent: str, lines: list[Line]) -> bool:
    """Say whether an agent's lines are a question of Claude Code's own, which is no turn of the user's session.

    The id of the agent says so, or all that it was ever asked.
    """
    if _SIDE_QUERY.fullmatch(agent):
        return True
    prompts = [x for x in lines if x.data.get("type") == "user" and all(b.get("type") == "text" for b in x.blocks)]
    asked = [_REMINDER.sub("", "\n".join(text_of(b, "text") for b in x.blocks)).strip().lower() for x in prompts]
    return bool(agent) and any(asked) and all(_ASKED.fullmatch(text) for text in asked if text)


def _account(context: Context, fates: dict[int, str], kept: bool) -> None:
    """Give each line of a context its fate; a line that two contexts show belongs to the first."""
    for node in context.path:
        for line in node.all_lines if node.copy_of is None else ():
            if node.role == "boundary":
                fate = "boundary"
            else:
                fate = "duplicate" if line.repeats else "conversation" if kept else "no_turns"
            fates.setdefault(line.number, fate)
    for node in context.abandoned:
        for line in node.all_lines if node.copy_of is None else ():
            fates.setdefault(line.number, "duplicate" if line.repeats else "abandoned")


def _lost(context: Context, base: str) -> list[Rejection]:
    return [
        Rejection(f"{base}/abandoned-{node.key}", base, None, ABANDONED_BRANCH.key)
        for node in context.abandoned
        if node.role == "assistant" and not node.repeats
    ]


def _errors(lines: list[Line], base: str) -> list[Rejection]:
    """API errors stand where a turn should be, but Claude Code does not send them back: they are in no context."""
    errors = (line for line in lines if line.kind == "api_error" and not line.repeats)
    return [Rejection(f"{base}/error-{line.uuid}", base, None, API_ERROR.key) for line in errors]


def _side_turns(lines: list[Line], base: str, report: ReadReport) -> None:
    """Count the turns and the lines of a side query."""
    graph = Graph(lines, Counter())
    report.lost_turns.extend(
        Rejection(f"{base}/side-{node.key}", base, None, SIDE_QUERY.key)
        for node in graph.nodes
        if node.role == "assistant" and not node.repeats
    )
    report.fates.update((line.number, "side_query") for line in lines)


def _inherited(
    chain: list[Line], agent: str, file: dict[str, Line], reference: Line | None, seen: SeenLines | None, path: Path
) -> tuple[list[Line], set[str]]:
    """Return the lines that a chain goes on from, and which missing parents another file or chain holds.

    The main chain goes on from another file where a session was resumed; a subagent from its parent's talk, if it was
    forked from it (`fork-context-ref`). Others have a context of their own, whatever their first line names. The groups
    of the files become one. `file`: all of its lines by `uuid`; `reference`: of the fork, if it is one.
    """
    start = next((line for line in chain if not line.by_order), None)
    if start is not None and start.parent is None and reference is not None:
        start.parent = text_of(reference.data, "parentLastUuid") or None
    found: list[Line] = []
    held: set[str] = set()
    files = {path}
    while (missing := _missing_parent([*found, *chain])) is not None:
        source = file.get(missing)
        if source is not None:
            taken, other, group = (up_to([*file.values()], source) if reference else []), path, ""
        else:
            before = seen.before(missing, path) if seen is not None else None
            if before is None:
                return found, held
            taken, other, group = before
            if not agent and taken and taken[-1].agent is not None:
                taken = []  # a main chain does not go on from a subagent's
        held.add(missing)
        forked = reference is not None
        if forked != bool(agent) or (source is not None and not forked) or (found and other in files) or not taken:
            return found, held
        files.add(other)
        found = [*taken, *found]
        if group and seen is not None:
            seen.join(group, group_of(chain, stem_of(path)))
    return found, held


def _missing_parent(chain: list[Line]) -> str | None:
    """Return the first parent that is not in the chain, of lines before its first answer and of that answer."""
    own = {line.uuid for line in chain}
    for line in chain:
        if line.parent is not None and line.parent not in own:
            return line.parent
        if line.kind == "assistant":
            return None
    return None


def _parts(
    context: Context, writer: Writer, prompts: list[tuple[int, Prompt]]
) -> list[tuple[Prompt | None, list[Message]]]:
    """Write a context down once for each system prompt under which it has turns of its own; the others are context."""
    numbers = [number for number, _ in prompts]
    firsts: dict[int, int] = {}
    for place, (_, prompt) in enumerate(prompts):
        firsts.setdefault(id(prompt), place)
    own: dict[int, list[int]] = {}
    for place, node in enumerate(context.path):
        if node.role == "assistant" and node in context.own and not node.repeats:
            last = bisect_right(numbers, node.number) - 1
            own.setdefault(firsts[id(prompts[last][1])] if last >= 0 else -1, []).append(place)
    parts: list[tuple[Prompt | None, list[Message]]] = []
    for number, places in own.items():
        others = {context.path[i] for key, found in own.items() if key != number for i in found}
        stop = len(context.path) if len(own) == 1 or number == max(own) else places[-1] + 1
        shown = Context(context.path[:stop], context.own - others, [])
        parts.append((prompts[number][1] if number >= 0 else None, writer.messages(shown)))
    return parts


def _prompts(lines: list[Line], notes: Counter[str]) -> list[tuple[int, Prompt]]:
    """Return what each line of kind `prompt` records, with its number; equal ones are one object."""
    known: dict[bytes, Prompt] = {}
    found = []
    for line in lines:
        if line.kind == "prompt":
            key = msgspec.json.encode([line.data.get("attachment"), line.data.get("tools")])
            if key not in known:
                known[key] = prompt_of(line, notes)
            found.append((line.number, known[key]))
    return found


def _session(part: tuple[Prompt | None, list[Message]], name: str, group: str, metadata: dict[str, Any]) -> Session:
    prompt, messages = part
    if prompt is None:
        return Session(name, tuple(messages), group=group, metadata=metadata)
    if prompt.names is not None or prompt.tools == ():
        metadata = {**metadata, OFFERED: list(prompt.names or ())}
    system = [Message("system", prompt.system)] if prompt.system else []
    return Session(name, (*system, *messages), prompt.tools or (), group, metadata)


def _chain_sessions(
    lines: list[Line], held: set[str], agent: str, path: Path, report: ReadReport, writer: Writer, every_branch: bool
) -> list[Session]:
    """Read one chain of a file: the main one (`agent` is ""), or a subagent's."""
    own = [line for line in lines if line.number > 0]
    group = group_of(own, stem_of(path))
    base = f"{group}/agent-{agent}" if agent else group
    models = sorted({text_of(line.message, "model") for line in own if line.kind == "assistant"} - {""})
    project = next((cwd for line in own if isinstance(cwd := line.data.get("cwd"), str)), None)
    report.lost_turns.extend(_errors(own, base))
    sessions: list[Session] = []
    prompts = _prompts(lines, report.notes)
    for context in Graph(lines, report.notes, held).contexts(every_branch):
        report.lost_turns.extend(_lost(context, base))
        kept = any(node.role == "assistant" and not node.repeats for node in context.own)
        _account(context, report.fates, kept)
        if not kept:
            report.notes["contexts_without_turns"] += 1
            continue
        for part in _parts(context, writer, prompts):
            number = len(sessions) + 1
            metadata: dict[str, Any] = {"format": FORMAT, "file": name_of(path), "models": models, "context": number}
            if context.compacted:
                metadata["compacted"] = True
            if agent:
                metadata["agent"] = agent
            if project:
                metadata["project"] = project
            sessions.append(_session(part, base if number == 1 else f"{base}#{number}", group, metadata))
    return sessions


def read_claude_code(path: Path, seen: SeenLines | None = None) -> FileSessions:
    """Read one Claude Code session file.

    Returns one `Session` per context that holds an assistant turn of its own: the main conversation, each compacted
    continuation (`<id>#2`, ...), each subagent (`<id>/agent-<key>`). All share one `group`. `report.fates` says what
    became of every non-blank line, and `report.lines` counts that.

    `seen`: the lines of the files of the same source that were read before. Turns that one of them holds are not
    counted again: they are context only (`status` is "repeated"), and `seen` joins the groups. What a chain of lines
    goes on from, in another file of the source, is context too.
    """
    report = ReadReport()
    lines = read(path, report)
    report.unknown.update(untested_versions(lines))
    if seen is not None:
        for line in lines:
            again = "uuid" in line.data and seen.repeats(line, group_of([line], stem_of(path)), path)
            line.repeats = line.repeats or again
    of_file, file = Writer(report.notes, lines), {line.uuid: line for line in lines}
    references = {text_of(x.data, "agentId"): x for x in lines if x.data.get("type") == "fork-context-ref"}
    sessions: list[Session] = []
    for agent, chain in chains(lines).items():
        side = agent or (stem_of(path).removeprefix("agent-") if stem_of(path).startswith("agent-") else "")
        if side and is_side_query(side, chain):
            base = group_of(chain, stem_of(path))
            _side_turns(chain, f"{base}/agent-{side}", report)
            continue
        reference = references.get(agent, references.get("")) if agent else None
        before, held = _inherited(chain, agent, file, reference, seen, path)
        for place, line in enumerate(before):
            line.number = place - len(before)
        chain = [*before, *chain]
        writer = Writer(report.notes, [*before, *lines]) if before else of_file
        every_branch = seen is not None and seen.every_branch
        sessions += _chain_sessions(chain, held, agent, path, report, writer, every_branch)
    for line in lines:
        report.fates.setdefault(line.number, "duplicate" if line.repeats else line.kind)
    for number in [n for n in report.fates if n < 1]:
        del report.fates[number]  # lines of another file
    report.lines.update(report.fates.values())
    return FileSessions(sessions, report)
