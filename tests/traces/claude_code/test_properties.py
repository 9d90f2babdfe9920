"""Properties of the reader on random session graphs and on garbage: nothing is lost, nothing hangs."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sdft_cli.traces.claude_code.reader import read_claude_code
from sdft_cli.traces.rows import read_lines
from sdft_cli.traces.source import read_source, resolve_source
from sdft_cli.traces.types import FileSessions
from tests.traces.lines import call, line, result, text

FATES = {
    *("conversation", "abandoned", "duplicate", "no_turns", "boundary", "microcompact", "api_error", "progress"),
    *("empty", "virtual", "attachment", "queue", "system", "broken", "unknown_type", "transcript_only", "prompt"),
}
QUIET = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
KINDS = st.sampled_from(
    ["user"] * 4
    + ["assistant"] * 5
    + ["result"] * 4
    + ["progress", "boundary", "kept", "micro", "error", "summary", "interrupt", "queue", "remove", "broken", "twice"]
    + ["moved", "rendered", "prompt", "notice", "init"]
)


@st.composite
def graphs(draw: st.DrawFn) -> list[Any]:
    """Lines of a session whose parents are mostly the line before, but may be any line, none, or a missing one.

    Every assistant line says its own number in its text, so that a message can be traced back to its lines.
    """
    kinds = draw(st.lists(KINDS, min_size=1, max_size=30))
    lines: list[Any] = []
    message = 0
    for number, kind in enumerate(kinds):
        uuid = str(number)
        where = draw(st.sampled_from(["last"] * 8 + ["any", "none", "missing"]))
        anywhere = str(draw(st.integers(0, len(kinds) - 1)))
        parent = {"last": str(number - 1), "any": anywhere, "none": None, "missing": "gone"}[where]
        extra: dict[str, Any] = {"isSidechain": True, "agentId": "a"} if draw(st.integers(0, 9)) == 0 else {}
        if kind == "assistant":
            message += draw(st.integers(0, 1))
            blocks = [*text(f"<{uuid}>"), *(call(f"c{uuid}") if draw(st.booleans()) else [])]
            made: Any = line(uuid, parent, "assistant", blocks, mid=f"m{message}", requestId=f"r{message}", **extra)
        elif kind == "user":
            made = line(uuid, parent, "user", f"<{uuid}>", **extra)
        elif kind == "result":
            made = line(uuid, parent, "user", result(f"c{anywhere}", f"<{uuid}>"), **extra)
        elif kind == "summary":
            made = line(uuid, parent, "user", f"<{uuid}>", isCompactSummary=True)
        elif kind == "interrupt":
            made = line(uuid, parent, "user", text("[Request interrupted by user]"))
        elif kind == "error":
            made = line(uuid, parent, "assistant", text("API Error"), isApiErrorMessage=True)
        elif kind in ("boundary", "kept"):
            segment = {"headUuid": anywhere, "tailUuid": str(number - 1), "anchorUuid": str(number + 1)}
            metadata = {"preservedSegment": segment} if kind == "kept" else {}
            made = line(uuid, None, "system", subtype="compact_boundary", compactMetadata=metadata)
            made["logicalParentUuid"] = parent
        elif kind == "micro":
            made = line(uuid, parent, "system", subtype="microcompact_boundary")
            made["microcompactMetadata"] = {"compactedToolIds": [f"c{anywhere}"]}
        elif kind in ("queue", "remove"):
            operation = "enqueue" if kind == "queue" else "remove"
            made = {"type": "queue-operation", "operation": operation, "content": f"<{uuid}>", "sessionId": "s"}
        elif kind == "broken":
            made = b'{"uuid": "' + uuid.encode()
        elif kind == "twice" and lines and isinstance(lines[-1], dict):
            made = lines[-1]
        elif kind == "moved" and lines and isinstance(lines[-1], dict) and "parentUuid" in lines[-1]:
            made = {**lines[-1], "parentUuid": parent}
        elif kind == "rendered":
            shown = draw(st.sampled_from([[{"content": f"<{uuid}>"}], [], 7]))
            made = line(uuid, parent, "attachment", attachment={"type": "date"}, rendered=shown)
        elif kind == "prompt":
            made = line(uuid, parent, "attachment", attachment={"type": "prompt_snapshot", "systemPrompt": anywhere})
        elif kind == "notice":
            made = line(uuid, parent, "user", f"<{uuid}>", queueTranscriptOnly=True)
        elif kind == "init":
            made = {"type": "system", "subtype": "init", "tools": [anywhere], "session_id": "s"}
        else:
            made = line(uuid, parent, "progress", data={})
        lines.append(made)
    return lines


def write(path: Path, lines: list[Any]) -> Path:
    path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))
    return path


def read_fast(path: Path) -> FileSessions:
    """Read a small file, in less than a second of processor time (a wall clock would fail on a busy machine)."""
    started = time.process_time()
    found = read_claude_code(path)
    assert time.process_time() - started < 1
    return found


def is_turn(data: Any) -> bool:
    return isinstance(data, dict) and data["type"] == "assistant" and "isApiErrorMessage" not in data


def marks(content: str) -> list[int]:
    """The line numbers that a message names, in order."""
    return [int(part.split(">")[0]) for part in content.split("<")[1:]]


@QUIET
@given(lines=graphs())
def test_every_line_has_one_fate_and_every_turn_is_somewhere_once(lines: list[Any], tmp_path: Path) -> None:
    found = read_fast(write(tmp_path / "s.jsonl", lines))
    report = found.report
    assert set(report.fates) == set(range(1, len(lines) + 1))
    assert set(report.fates.values()) <= FATES
    assert report.lines == Counter(report.fates.values())
    shown: Counter[int] = Counter()
    for session in found.sessions:
        for turn in session.assistant_turns():
            shown.update(marks(session.messages[turn].content))
    assert not shown or max(shown.values()) == 1
    for number, data in enumerate(lines, start=1):
        fate = report.fates[number]
        if is_turn(data) and fate != "duplicate":
            assert (number - 1 in shown) == (fate == "conversation"), (number, fate)
            assert fate in ("conversation", "abandoned"), fate
    kept = sum(len(s.assistant_turns()) for s in found.sessions)
    chains = {(x.get("agentId", ""), x["message"]["id"]) for x in lines if is_turn(x)}
    errors = {x["uuid"] for x in lines if isinstance(x, dict) and x.get("isApiErrorMessage")}
    assert kept + len(report.lost_turns) == len(chains) + len(errors)


Plain = list[tuple[str, int | None]]
PLAIN = st.lists(
    st.tuples(st.sampled_from(["user", "assistant", "progress"]), st.integers(-2, 3)), min_size=1, max_size=25
)


def plain_graph(steps: list[tuple[str, int]]) -> Plain:
    """`(kind, parent)` of each line: the parent is 1 to 4 lines before, or none."""
    return [
        (kind, i - 1 - max(back, 0) if back > -2 and i > max(back, 0) else None) for i, (kind, back) in enumerate(steps)
    ]


def ancestors(graph: Plain, number: int) -> list[int]:
    """The lines from the root of the tree to `number`, by walking parents one by one."""
    parent = graph[number][1]
    return [*(ancestors(graph, parent) if parent is not None else []), number]


def expected_contexts(graph: Plain) -> list[list[int]]:
    """The path to the last conversation line of each tree that has one with an answer, worked out the naive way."""
    last: dict[int, int] = {}
    for number, (kind, _) in enumerate(graph):
        if kind != "progress":
            last[ancestors(graph, number)[0]] = number
    paths = [[n for n in ancestors(graph, leaf) if graph[n][0] != "progress"] for leaf in last.values()]
    return sorted(path for path in paths if any(graph[n][0] == "assistant" for n in path))


@QUIET
@given(steps=PLAIN)
def test_a_context_is_the_path_of_parents_to_the_last_line_of_a_tree(
    steps: list[tuple[str, int]], tmp_path: Path
) -> None:
    graph = plain_graph(steps)
    lines = [
        line(str(i), None if parent is None else str(parent), kind, text(f"<{i}>"), mid=f"m{i}")
        for i, (kind, parent) in enumerate(graph)
    ]
    found = read_fast(write(tmp_path / "s.jsonl", lines))
    assert sorted([n for m in s.messages for n in marks(m.content)] for s in found.sessions) == expected_contexts(graph)


ACTS = st.sampled_from(
    ["talk"] * 5
    + ["call"] * 2
    + ["compact", "detached", "kept", "again", "hook", "notice", "rendered", "queued", "prompt"]
)


class Told:
    """Plays a session: writes its lines as Claude Code does, and keeps what the model saw, without reading a line."""

    def __init__(self) -> None:
        self.lines: list[Any] = []
        self.seen: list[str] = []
        self.contexts: list[list[str]] = []
        self.tail: str | None = None
        self.answered = 0
        """Answers of this context that are its own."""
        self.reminded = False
        """A hook's words stand in this context."""

    def put(self, kind: str, content: Any = None, parent: Any = ..., **extra: Any) -> str:
        uuid = str(len(self.lines))
        self.lines.append(line(uuid, self.tail if parent is ... else parent, kind, content, **extra))
        self.tail = uuid
        return uuid

    def user(self, words: str, **extra: Any) -> None:
        self.seen.append(words)
        self.put("user", words, **extra)

    def answer(self, with_call: bool) -> None:
        words = f"<{len(self.lines)}>"
        blocks = [*text(words), *(call(f"c{len(self.lines)}") if with_call else [])]
        self.seen.append(words)
        self.answered += 1
        name = len(self.lines)
        self.put("assistant", blocks, mid=f"m{name}", requestId=f"r{name}")
        if with_call:
            self.seen.append(f"<{len(self.lines)}>")
            self.put("user", result(f"c{name}", f"<{len(self.lines)}>"))

    def compact(self, how: str) -> None:
        """Close the context, and go on behind a summary: by its line, or by the old leaf, which then lies."""
        leaf, last = self.tail, next((x for x in reversed(self.lines) if x["type"] == "assistant"), None)
        if self.answered:
            self.contexts.append(self.seen)
        keeps = how in ("kept", "again") and last is not None and "<" + last["uuid"] + ">" == self.seen[-1]
        head = last["uuid"] if last else None
        segment = {"headUuid": head, "tailUuid": leaf, "anchorUuid": str(len(self.lines) + 1)}
        extra = {"compactMetadata": {"preservedSegment": segment} if keeps else {}, "logicalParentUuid": leaf}
        self.put("system", parent=None, subtype="compact_boundary", **extra)
        kept = self.seen[-1:] if keeps else []
        self.seen, self.answered, self.reminded = [], 0, False
        self.user(f"<{len(self.lines)}>", isCompactSummary=True)
        self.seen += kept
        if keeps and how == "again" and last is not None:
            self.lines.append({**last, "parentUuid": self.tail})
        if how == "detached" or keeps:
            self.tail = leaf

    def act(self, act: str) -> None:
        mark = f"<{len(self.lines)}>"
        if act in ("talk", "call"):
            self.user(mark)
            self.answer(act == "call")
        elif act == "notice":
            self.put("user", mark, queueTranscriptOnly=True)
        elif act == "rendered":
            self.seen.append(mark)
            self.put("attachment", attachment={"type": "date"}, rendered=[{"content": mark}])
        elif act == "prompt":
            if not any(x["type"] == "assistant" for x in self.lines):  # else it would be another prompt than before
                self.put("attachment", attachment={"type": "prompt_snapshot", "systemPrompt": "one"})
        elif act == "queued":
            self.lines.append({"type": "queue-operation", "operation": "enqueue", "content": mark, "uuid": f"q{mark}"})
            self.lines.append({"type": "queue-operation", "operation": "remove", "uuid": f"r{mark}"})
            self.seen.append(mark)
            self.answer(False)
        elif act == "hook":
            first = next((x for x in self.lines if x["type"] == "saved_hook_context"), None)
            if first is None:
                self.seen.append(mark)
                self.put("saved_hook_context")
                self.lines[-1]["content"] = [mark]
            else:
                self.seen += [] if self.reminded else first["content"]
                self.lines.append({**first, "parentUuid": self.tail})
                self.tail = first["uuid"]
            self.reminded = True
        elif self.tail is not None and self.seen:  # there is something to compact
            self.compact(act)


@QUIET
@given(acts=st.lists(ACTS, max_size=15))
@example(acts=["talk", "again", "notice", "again", "kept", "talk"])  # a message that stands three times
def test_a_session_that_was_played_is_read_as_the_model_saw_it(acts: list[str], tmp_path: Path) -> None:
    told = Told()
    for act in acts:
        told.act(act)
    if told.answered:
        told.contexts.append(told.seen)
    found = read_fast(write(tmp_path / "s.jsonl", told.lines))
    read = [[n for m in s.messages if m.role != "system" for n in marks(m.content)] for s in found.sessions]
    assert read == [[n for words in context for n in marks(words)] for context in told.contexts]
    assert set(found.report.fates) == set(range(1, len(told.lines) + 1))


@QUIET
@given(lines=graphs(), cut=st.integers(0, 30))
def test_a_resumed_copy_counts_nothing_twice(lines: list[Any], cut: int, tmp_path: Path) -> None:
    """The same lines, split over a file and its resumed copy, give the turns that one file gives."""
    alone = read_fast(write(tmp_path / "s.jsonl", lines))
    folder = tmp_path / "both"
    folder.mkdir(exist_ok=True)
    write(folder / "1.jsonl", lines)
    copied = [x if isinstance(x, bytes) else {**x, "sessionId": "t"} for x in lines]
    write(folder / "2.jsonl", [*copied, *([line("new", "0", "user", "new")] if cut % 2 else [])])
    if not alone.sessions:
        return
    both = read_source(resolve_source(str(folder)))
    assert sum(len(s.assistant_turns()) for s in both.sessions) == sum(len(s.assistant_turns()) for s in alone.sessions)
    assert len(both.report.lost_turns) == len(alone.report.lost_turns)
    assert {s.group for s in both.sessions} <= {"s"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(
    [
        *("uuid", "parentUuid", "type", "message", "sessionId", "isSidechain", "agentId", "subtype", "attachment"),
        *("operation", "content", "logicalParentUuid", "compactMetadata", "microcompactMetadata", "isCompactSummary"),
        *("replacements", "forkedFrom", "isApiErrorMessage", "apiError", "interruptedMessageId", "parent_tool_use_id"),
        *("rendered", "renderedRole", "wireToolInputs", "requestId", "version", "queueTranscriptOnly", "tools"),
    ]
)
TYPES = st.sampled_from(
    [
        *("user", "assistant", "system", "attachment", "queue-operation", "content-replacement", "progress", "summary"),
        *("saved_hook_context", "fork-context-ref"),
    ]
)


@st.composite
def strange_lines(draw: st.DrawFn) -> dict[str, Any]:
    """A line of a real type in which anything may stand in any field, down to the blocks of its message."""
    block = st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "tool_use", "tool_result", "thinking", "image", "web_search_tool_result"])},
        optional=dict.fromkeys(("text", "id", "name", "input", "tool_use_id", "content", "thinking"), JSON),
    )
    content = st.lists(block | JSON, max_size=3) | JSON
    message = st.fixed_dictionaries({"content": content}, optional={"id": JSON, "model": JSON, "stop_reason": JSON})
    data: dict[str, Any] = {"type": draw(TYPES), "uuid": draw(st.sampled_from("abcdef")), "message": draw(message)}
    return {**data, **draw(st.dictionaries(FIELDS, JSON, max_size=4))}


@QUIET
@given(lines=st.lists(strange_lines(), max_size=8))
def test_any_json_in_any_field_is_read_and_accounted_for(lines: list[dict[str, Any]], tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", lines)
    found = read_fast(path)
    assert set(found.report.fates) == set(range(1, len(lines) + 1))


@QUIET
@given(content=st.binary(max_size=300) | st.text(alphabet='{}[]":,\\ \n0eutypd\x00\ud800', max_size=200))
def test_any_bytes_are_read_and_accounted_for(content: bytes | str, tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    found = read_fast(path)
    assert set(found.report.fates) == {number for number, _ in read_lines(path)}


@pytest.mark.parametrize("depth", [100, 500, 900, 1000, 100_000])
def test_deep_nesting_is_read_or_counted(depth: int, tmp_path: Path) -> None:
    nested = b"[" * depth + b"]" * depth
    shapes = [b'{"type":"user","uuid":%b}', b'{"type":"assistant","uuid":"2","message":{"content":[%b]}}']
    shapes.append(
        b'{"type":"assistant","uuid":"3","message":{"content":[{"type":"tool_use","id":"c","input":{"a":%b}}]}}'
    )
    path = tmp_path / "s.jsonl"
    path.write_bytes(b"".join(shape.replace(b"%b", nested) + b"\n" for shape in shapes))
    assert set(read_fast(path).report.fates) == {1, 2, 3}


def chain(number: int) -> dict[str, Any]:
    return line(str(number), str(number - 1) if number else None, "user", "x")


def only_progress_then_users(count: int) -> list[Any]:
    transparent = [{**chain(i), "type": "progress"} for i in range(count // 2)]
    return transparent + [line(f"u{i}", str(count // 2 - 1), "user", "x") for i in range(count // 2)]


def every_parent_ahead(count: int) -> list[Any]:
    return [line(str(i), str((i + 1) % count), "user", "x") for i in range(count)]


def microcompactions(count: int) -> list[Any]:
    lines = []
    for i in range(count):
        made = chain(i)
        if i % 3 == 2:
            made |= {"type": "system", "subtype": "microcompact_boundary"}
            made["microcompactMetadata"] = {"compactedToolIds": ["c"]}
        lines.append(made)
    return lines


def kept_segments(count: int) -> list[Any]:
    lines: list[Any] = [chain(i) for i in range(count // 2)]
    segment = {"headUuid": "0", "tailUuid": str(count // 2 - 1), "anchorUuid": "0"}
    for i in range(count // 2):
        made = line(f"b{i}", None, "system", subtype="compact_boundary")
        lines.append({**made, "compactMetadata": {"preservedSegment": segment}})
    return lines


def queue_and_interrupts(count: int) -> list[Any]:
    lines: list[Any] = []
    for i in range(count // 4):
        lines += [
            {"type": "queue-operation", "operation": "enqueue", "content": f"q{i}"},
            {"type": "queue-operation", "operation": "remove"},
            line(str(i), str(i - 1), "assistant", text("y"), mid=f"m{i}"),
            line(f"i{i}", str(i), "user", text("[Request interrupted by user]")),
        ]
    return lines


def queue_that_is_delivered_in_reverse(count: int) -> list[Any]:
    queued = [{"type": "queue-operation", "operation": "enqueue", "content": f"q{i}"} for i in range(count // 2)]
    users = [line(f"u{i}", f"u{i + 1}", "user", f"q{i}") for i in reversed(range(count // 2))]
    return [*queued, *users]


def hooks_that_are_saved_again(count: int) -> list[Any]:
    lines: list[Any] = []
    for i in range(count // 2):
        lines.append({**line("h", f"a{i - 1}" if i else None, "saved_hook_context"), "content": ["Be kind."]})
        lines.append(line(f"a{i}", "h", "assistant", text("x"), mid=f"m{i}", requestId=f"r{i}"))
    return lines


def detached_compactions(count: int) -> list[Any]:
    lines: list[Any] = [line("a0", None, "user", "x")]
    for i in range((count - 1) // 3):
        boundary = line(f"b{i}", None, "system", subtype="compact_boundary", logicalParentUuid=f"a{i}")
        lines += [boundary, line(f"s{i}", f"b{i}", "user", "y", isCompactSummary=True)]
        lines.append(line(f"a{i + 1}", f"a{i}", "assistant", text("z"), mid=f"m{i}", requestId=f"r{i}"))
    return [*lines, *(line(f"z{i}", None, "progress") for i in range(count - len(lines)))]


def one_message_with_many_calls(count: int) -> list[Any]:
    calls = [line(str(i), str(i - 1), "assistant", call(f"c{i}"), mid="m") for i in range(count // 2)]
    return calls + [line(f"r{i}", str(i), "user", result(f"c{i}", "x")) for i in range(count // 2)]


SHAPES: list[Callable[[int], list[Any]]] = [
    *(lambda n: [chain(i) for i in range(n)], only_progress_then_users, every_parent_ahead, microcompactions),
    *(kept_segments, queue_and_interrupts, one_message_with_many_calls, queue_that_is_delivered_in_reverse),
    *(hooks_that_are_saved_again, detached_compactions),
    lambda n: [line(str(i), "gone", "assistant", text("x"), mid=f"m{i}") for i in range(n)],
    lambda n: [line(str(i), "0", "assistant", text("x"), mid=f"m{i}") for i in range(n)],
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.__name__)
def test_time_grows_with_the_number_of_lines(shape: Callable[[int], list[Any]], tmp_path: Path) -> None:
    """Sixteen times the lines take about sixteen times as long; a quadratic step would take 256 times."""

    def seconds(count: int) -> float:
        path = write(tmp_path / f"{count}.jsonl", shape(count))
        started = time.process_time()
        assert len(read_claude_code(path).report.fates) == count
        return time.process_time() - started

    small = min(seconds(2_000), seconds(2_000))
    assert seconds(32_000) < 100 * max(small, 0.01)
