"""The graph of a Claude Code conversation: lines -> messages (`Node`) -> the contexts that the model saw.

1. `_build` joins the lines of one API message (same `message.id`) into one node and hangs each tool result on the node
   that made the call, so that parallel calls are no forks.
2. `_link` gives each node its parent, in the order of the file, and copies what a compaction kept.
3. `contexts` cuts the graph into trees. The path to the last node of a tree, and to each node at which a compaction
   ended a context, is what the model saw; the other branches are abandoned.

Which place is live after a compaction is decided by the order of the file, not by `parentUuid` alone: what follows the
leaf that a boundary closed, in the file and in the chain, goes on behind the summary.

Every step is linear in the number of lines, up to path compression (`_root`, `_current`) and binary searches.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from sdft_cli.traces.claude_code.lines import CALLS, Line, version_of
from sdft_cli.traces.claude_code.queue import queued_prompts
from sdft_cli.traces.fields import object_of, text_of

_STEPS_PER_NODE = 10
"""Each compaction may walk and copy its context; more steps than this per node are refused: time stays linear."""
_CUT_OFF = ("max_tokens", "model_context_window_exceeded", "refusal")
_REASONS_SINCE = (2, 1, 260)
"""The version from which on each line of a message has the reason for its end."""
_MARKER_REACH = 20
"""How many attachments may stand between a turn and the marker that the user stopped it."""


@dataclass(eq=False, slots=True)
class Node:
    """One message of the conversation: a line of the user's side, or all lines of one assistant message."""

    role: str
    lines: list[Line]
    key: str
    tree: str
    """Names the tree of a node without parent: the topmost line above it, whatever its kind."""
    parent: Node | None = None
    results: dict[str, list[Line]] = field(default_factory=dict)
    """Tool results of this node's calls, by call id, in the order of the file."""
    copy_of: Node | None = None
    """The node that this one shows again in a later context: kept by a compaction, or microcompacted."""
    cleared: frozenset[str] = frozenset()
    """Calls whose results the model no longer saw."""
    fresh: bool = False
    """Nothing but a boundary, what it kept and lines of the user's side stand above this node."""
    interrupted: bool = False
    truncated: bool = False
    replayed: bool = False
    """The same answer stands at an earlier place of the file."""
    cut: bool = False
    """A root that names a parent which no file holds: what came before it is missing."""
    up: Node | None = None
    """A node nearer to the root of the tree (path compression)."""

    @property
    def number(self) -> int:
        return self.lines[0].number

    @property
    def all_lines(self) -> list[Line]:
        return [*self.lines, *(line for lines in self.results.values() for line in lines)]

    @property
    def order(self) -> int:
        """The position of the node's last line in the file, results included."""
        return max(line.number for line in self.all_lines)

    @property
    def repeats(self) -> bool:
        """Say whether another context or another file has this message as its own."""
        return self.copy_of is not None or self.replayed or any(line.repeats for line in self.lines)


@dataclass
class Context:
    """The nodes that the model saw, in order; `own` are those that no context before shows.

    `abandoned` are nodes on branches that were given up, in the first context of a tree.
    """

    path: list[Node]
    own: set[Node]
    abandoned: list[Node]

    @property
    def cut(self) -> bool:
        """Say whether the beginning is missing."""
        root = self.path[0].copy_of or self.path[0]
        return root.cut

    @property
    def compacted(self) -> bool:
        """Say whether it begins with the summary of another context."""
        root = self.path[0]
        return root.role == "boundary" or root.lines[0].data.get("isCompactSummary") is True


def _said(block: dict[str, object]) -> tuple[str, str]:
    """What tells a block of a message from the others: the id of a call, or its words."""
    kind = text_of(block, "type")
    if kind in CALLS:
        return kind, text_of(block, "id")
    keys = ("text", "thinking", "signature", "tool_use_id", "data")
    return kind, next((words for key in keys if (words := text_of(block, key))), "")


def _goes_on(message: Node, before: Node | None, line: Line) -> bool:
    """Say whether a line without `requestId` may go on with a message that does not stand directly before it: a call
    behind the result of its sibling, while the message has no reason for its end."""
    is_call = any(block.get("type") in CALLS for block in line.blocks)
    return before is message and is_call and message.lines[-1].message.get("stop_reason") is None


def _is_prompt(line: Line) -> bool:
    """Say whether the user typed this line for the model: it is no command, no result and no meta line."""
    if line.data.get("type") != "user" or line.data.get("isMeta") is True:
        return False
    texts = [text_of(block, "text") for block in line.blocks if block.get("type") == "text"]
    return bool(texts) and not texts[0].startswith(("<command-", "<local-command-", "/"))


def _number(found: Line | Node) -> int:
    return found.number


def _ids(line: Line, kinds: Sequence[str], key: str) -> list[str]:
    return [text_of(block, key) for block in line.blocks if block.get("type") in kinds]


class Graph:
    """The conversation graph of one chain (the main one, or one subagent's) of a file.

    `held`: lines that stand elsewhere, so that a root that names one of them is no cut beginning. `notes` counts what
    had to be decided: `repaired_links`, `cycles`, `orphan_tool_results`, `queued_prompts`,
    `compactions_not_followed`.
    """

    def __init__(self, lines: list[Line], notes: Counter[str], held: Collection[str] = ()) -> None:
        self.lines = lines
        self.notes = notes
        self._held = held
        self._answered = False
        self.nodes: list[Node] = []
        self.node_of: dict[str, Node] = {}
        self._by_uuid = {line.uuid: line for line in lines}
        self._messages: dict[str, Node] = {}
        self._answers: dict[str, Node] = {}
        """The latest message with an id."""
        self._nearest: dict[str, tuple[Node | None, str, bool]] = {}
        self._copy: dict[Node, Node] = {}
        self._steps = 0
        self._ends: set[Node] = set()
        self._closed: dict[Node, Node] = {}
        """The leaf that a compaction closed -> its boundary."""
        self._carried: dict[Node, Node] = {}
        """A prompt that was not answered yet when its context was closed -> the boundary."""
        self._tip: dict[Node, Node] = {}
        """The latest node in the tree of a boundary."""
        self._places: dict[str, list[Line]] = {}
        """The second and later places of a line in the file, by its `uuid`."""
        for line in lines:
            if line.uuid != (text_of(line.data, "uuid") or line.uuid):
                self._places.setdefault(text_of(line.data, "uuid"), []).append(line)
        self._boundaries = [line.number for line in lines if line.kind == "boundary"]
        self._summary: dict[Node, Node] = {}
        """The first summary behind a boundary."""
        self._written: dict[Node, list[Node]] = {}
        """A message that was replayed, or a replay -> the message and all its replays, in the order of the file."""
        self._said: dict[Node, set[tuple[str, str]]] = {}
        self._spot: dict[str, Node] = {}
        """Where the chain stands behind a line: at its message, or at what was shown before the message was whole."""
        self._base: dict[Node, Node] = {}
        self._queue = queued_prompts(lines)[::-1]
        self._build()
        self._link()
        self._mark()

    def _build(self) -> None:
        owner: dict[str, Node] = {}
        boundary: Node | None = None
        for line in self.lines:
            if line.kind == "assistant":
                self._assistant_line(line, owner)
            elif line.kind == "user":
                self._user_line(line, owner)
                if boundary is not None and line.data.get("isCompactSummary") is True:
                    self._summary.setdefault(boundary, self.node_of[line.uuid])
            elif line.kind in ("boundary", "microcompact"):
                node = self._new(line.kind, line)
                if line.kind == "boundary":
                    self.node_of[line.uuid] = boundary = node
            self._place(line)

    def _place(self, line: Line) -> None:
        """Note where the chain stands behind a line.

        Hooks speak between a call and its result, or between two calls: what they say stands behind the results of the
        message, and what follows the message follows them.
        """
        behind = self._spot.get(line.parent or "")
        node = self.node_of.get(line.uuid)
        if node is None:
            spot = behind
        elif node.role == "user" and node.lines[0] is line:
            spot = node
            if behind is not None:
                self._base[node] = behind if behind.role == "assistant" else self._base.get(behind, behind)
        else:
            inside = behind is not None and behind.role == "user" and self._base.get(behind) is node
            spot = behind if inside else node
        if spot is not None:
            self._spot[line.uuid] = spot

    def _new(self, role: str, line: Line, key: str | None = None) -> Node:
        node = Node(role, [line], key or line.uuid, line.uuid)
        self.nodes.append(node)
        return node

    def _assistant_line(self, line: Line, owner: dict[str, Node]) -> None:
        """Add a line to its message, or begin one.

        A `message.id` alone may be used again, so the `requestId` belongs to the key. Where there is none, a line goes
        on with its message only directly behind it (`_goes_on`). A block that the message has already begins a replay.
        """
        name = text_of(line.message, "id") or line.uuid
        request = text_of(line.data, "requestId")
        key = f"{name} {request}"
        said = {_said(block) for block in line.blocks}
        first = self._messages.get(key)
        before = self.node_of.get(line.parent or "")
        parent = self._by_uuid.get(line.parent or "")
        behind = parent is not None and parent.kind == line.kind and not line.repeats
        if behind and before is not None and before is self._latest_of(first):
            node: Node | None = before  # directly behind a line of its message, it goes on with it
        else:
            node = self._latest_of(first) if first and said & self._said[first] else first
        direct = behind and node is before
        other = first is not None and not (request or line.by_order or direct or _goes_on(first, before, line))
        if node is None or other or (not direct and said & self._said[node]):
            node = self._new("assistant", line, name)
            self._said[node] = said
            if first is None or (other and not said & self._said[first]):
                self._messages[key] = node
            else:
                node.replayed = True
                self._written[node] = self._written.setdefault(first, [first])
                self._written[node].append(node)
            self._answers[name] = node
        else:
            node.lines.append(line)
            self._said[node] |= said
        self.node_of[line.uuid] = node
        owner.update((call, node) for call in _ids(line, ("tool_use",), "id"))

    def _latest_of(self, first: Node | None) -> Node | None:
        """Return the latest replay of a message."""
        return self._written.get(first, [first])[-1] if first is not None else None

    def _user_line(self, line: Line, owner: dict[str, Node]) -> None:
        results = _ids(line, ("tool_result",), "tool_use_id")
        owned = [r for r in results if r in owner]
        for result in owned:
            owner[result].results.setdefault(result, []).append(line)
        for refused in line.refused_calls():
            if refused in owner:
                owner[refused].interrupted = True
        self.notes["orphan_tool_results"] += len(results) - len(owned)
        self.node_of[line.uuid] = owner[owned[0]] if owned else self._new("user", line)

    def _root(self, node: Node) -> Node:
        passed = []
        while node.up is not None:
            passed.append(node)
            node = node.up
        for other in passed:
            other.up = node
        return node

    def _attach(self, node: Node, parent: Node | None) -> None:
        """Make `parent` the parent of a node that has none, unless that closes a cycle."""
        if parent is None:
            return
        if self._root(parent) is node:
            self.notes["cycles"] += 1
            return
        root = self._root(parent)
        node.parent, node.up = parent, root
        if root.role == "boundary":
            self._tip[root] = node
        node.fresh = parent.fresh and node.role == "user"

    def _link(self) -> None:
        """Link the nodes in the order of the file; a parent that stands later in the file comes last."""
        forward: list[tuple[Node, Node]] = []
        previous: Node | None = None
        for node in list(self.nodes):
            if node.role == "microcompact":
                self._microcompact(node, self._parent_of(node, previous))
                continue
            if node.role == "boundary":
                self._compact(node, previous)
            else:
                parent = self._parent_of(node, previous)
                if parent is not None and parent.number > node.number:
                    forward.append((node, parent))
                elif self._starts_anew(node, parent):
                    self._ends.update([parent] if parent else [])
                else:
                    self._attach(node, self._queued(node, parent))
            previous = node
            self._answered = self._answered or node.role == "assistant"
        for node, parent in forward:
            self._attach(node, self._current(parent))
        self._ask(previous, None)

    def _parent_of(self, node: Node, previous: Node | None) -> Node | None:
        """Return the nearest conversation node above a node's first line, in its latest copy."""
        line = node.lines[0]
        seen: set[str] = set()
        while line.uuid not in seen:
            seen.add(line.uuid)
            if line.by_order:
                return self._current(previous)
            if line.parent is None:
                return None
            parent, top, missing = self._above(line.parent)
            if missing:
                return self._without_parent(node, line, top, previous)
            if parent is not node:
                node.tree = node.tree if parent else top
                return self._current(parent)
            line = self._by_uuid[top]
        return None

    def _without_parent(self, node: Node, line: Line, name: str, previous: Node | None) -> Node | None:
        """Return the parent of a node above which a line is broken or missing: the order of lines decides.

        Before the first answer it does not: then the beginning is missing, unless a summary stands for it, what is left
        of a plan mode names the session before, or another file holds it.
        """
        if self._answered:
            self.notes["repaired_links"] += 1
            return self._current(previous)
        passed: set[str] = set()
        while line.parent in self._by_uuid and line.parent not in passed:
            passed.add(line.parent)
            line = self._by_uuid[line.parent]
        left = text_of(object_of(line.data, "attachment"), "type").startswith(("plan_", "auto_mode"))
        node.cut = not (left or name in self._held or node.lines[0].data.get("isCompactSummary") is True)
        return None

    def _above(self, uuid: str) -> tuple[Node | None, str, bool]:
        """Walk up from a line to the nearest node: `(node, the line where the walk ended, whether it got lost)`."""
        passed: list[str] = []
        nearest = self._nearest.get(uuid)
        visited: set[str] = set()
        while nearest is None:
            line = self._by_uuid.get(uuid)
            if uuid in self.node_of:
                nearest = (self._spot.get(uuid, self.node_of[uuid]), uuid, False)
            elif line is None or uuid in visited or line.by_order:
                nearest = (None, uuid, True)
            else:
                visited.add(uuid)
                passed.append(uuid)
                nearest = (None, uuid, False) if line.parent is None else self._nearest.get(line.parent)
                uuid = line.parent or uuid
        self._nearest.update(dict.fromkeys(passed, nearest))
        return nearest

    def _current(self, node: Node | None) -> Node | None:
        """Return the place at which what follows a node goes on: its latest copy, or the end of the context that a
        compaction made of it."""
        passed: dict[Node, None] = {}
        while node is not None:
            node = self._copy.get(node, node)
            boundary = self._closed.get(node)
            if boundary is None or node in passed:
                break
            passed[node] = None
            if self._carried.pop(node, None) is not None:
                tip = self._copy.get(self._tip.get(boundary, boundary), self._tip.get(boundary, boundary))
                return self._copy_path([node], tip, frozenset(), boundary.tree)
            node = self._tip.get(boundary, boundary)
        for other in passed:  # shortens the way for the next time
            self._closed[other] = self._closed[next(reversed(passed))]
        return node

    @staticmethod
    def _starts_anew(node: Node, parent: Node | None) -> bool:
        """A summary that continues no boundary (older versions wrote none) starts a context by itself."""
        return node.lines[0].data.get("isCompactSummary") is True and parent is not None and not parent.fresh

    def _queued(self, node: Node, parent: Node | None) -> Node | None:
        """The first assistant message that begins after a prompt was absorbed is the first that saw it."""
        return self._ask(parent, node.number) if node.role == "assistant" else parent

    def _ask(self, parent: Node | None, before: int | None) -> Node | None:
        """Put the prompts that were absorbed before line `before` behind `parent`; return the last node."""
        while self._queue and (before is None or self._queue[-1][0] < before):
            _, line = self._queue.pop()
            node = self._new("user", line)
            self.node_of[line.uuid] = node
            self.notes["queued_prompts"] += 1
            self._attach(node, parent)
            parent = node
        return parent

    def _compact(self, boundary: Node, previous: Node | None) -> None:
        """End the context that a boundary closes, and put what the compaction kept behind its summary."""
        boundary.fresh = True
        data = boundary.lines[0].data
        named = self._latest(text_of(data, "logicalParentUuid"), boundary.number)
        leaf = self._above(named)[0] if named else None
        closed, live = self._current(leaf), self._current(previous)
        behind = self._behind(closed, live)
        if behind and _is_prompt(behind[-1].lines[0]):
            self._carried[behind[-1]] = boundary
        end = self._ask(behind[-1] if behind else closed or live, boundary.number)
        if closed is not None and end is not None:
            self._ends.add(end)
        kept, anchor = self._kept(object_of(data, "compactMetadata"), boundary)
        while closed is not None and closed.role == "user" and closed.lines[0].data.get("type") != "user":
            behind.append(closed)  # what hung on the leaf's message beside it
            closed = closed.parent
        for node in {closed, end, *behind} - {None, boundary}:
            if node is not None and node.role in ("user", "assistant") and node.number < boundary.number:
                self._closed[node] = boundary
        if previous is not None and previous.role == "boundary":
            self._closed[previous] = boundary  # a compaction that failed: nothing stands behind it
        if kept:
            self._copy[anchor] = self._copy_path(kept, anchor, frozenset(), boundary.tree)

    def _behind(self, leaf: Node | None, live: Node | None) -> list[Node]:
        """Return the path from behind a leaf to the live end of its context: what was written before the boundary."""
        path: list[Node] = []
        node = live
        while node is not None and leaf is not None and node is not leaf and self._steps <= self._most_steps():
            self._steps += 1
            path.append(node)
            node = node.parent
        if node is None and live is not None and leaf is not None and path[-1].role == "boundary":
            return [live] if leaf.number < path[-1].number else []  # the leaf of a context that was closed before
        return path[::-1] if node is leaf and leaf is not None else []

    def _most_steps(self) -> int:
        return _STEPS_PER_NODE * (len(self.node_of) + 50)

    def _latest(self, uuid: str, before: int) -> str:
        """Return the name of the place at which a line stood last, before a line of this number."""
        places = self._places.get(uuid, [])
        found = bisect_left(places, before, key=_number)
        return places[found - 1].uuid if found else uuid

    def _shown(self, node: Node, before: int) -> Node:
        """Return the latest copy or replay of a node, of those that stand before a line of this number."""
        written = self._written.get(node, [])
        earlier = bisect_left(written, before, key=_number)
        node = written[earlier - 1] if earlier else node
        return self._copy.get(node, node)

    def _written_again(self, node: Node, boundary: int) -> bool:
        """Say whether a message stands once more between a boundary and the next."""
        place = bisect_right(self._boundaries, boundary)
        end = self._boundaries[place] if place < len(self._boundaries) else sys.maxsize
        for line in node.lines:
            places = self._places.get(text_of(line.data, "uuid"), [])
            if bisect_right(places, boundary, key=_number) < bisect_left(places, end, key=_number):
                return True
        written = self._written.get(node, [])
        return bisect_right(written, boundary, key=_number) < bisect_left(written, end, key=_number)

    def _kept(self, metadata: dict[str, object], boundary: Node) -> tuple[list[Node], Node]:
        """Return the nodes that a compaction kept word for word, in order, and the node that they follow."""
        listed, segment = object_of(metadata, "preservedMessages"), object_of(metadata, "preservedSegment")
        anchor = text_of(listed, "anchorUuid") or text_of(segment, "anchorUuid")
        after = self._above(anchor)[0] if anchor in self._by_uuid else None
        if after is None or after.number < boundary.number:  # it names none, or one of those that it keeps
            after = self._summary.get(boundary, boundary)
        uuids = listed.get("uuids")
        if isinstance(uuids, list):
            names = [self._latest(u, boundary.number) for u in uuids if isinstance(u, str)]
            listed_nodes = [self.node_of[name] for name in names if name in self.node_of]
        else:
            head, tail = (self._latest(text_of(segment, key), boundary.number) for key in ("headUuid", "tailUuid"))
            listed_nodes = self._segment(head, tail, boundary.number)
        listed_nodes = [n for n in listed_nodes if not self._written_again(n, boundary.number)]
        kept = list(dict.fromkeys(self._shown(n, boundary.number) for n in listed_nodes))
        return [n for n in kept if n not in (after, boundary) and n.role in ("user", "assistant")], after

    def _segment(self, head: str, tail: str, before: int) -> list[Node]:
        nodes = (self.node_of.get(head), self._above(tail)[0] if tail else None)
        first, last = (node and self._shown(node, before) for node in nodes)
        if first is None and last is not None and head in self._by_uuid:  # a line without words: what follows it
            start = self._by_uuid[head].number
            path = self._walk(last, None)
            return [node for node in path if node.number > start]
        path = self._walk(last, first) if first is not None else []
        return path if path and path[0] is first else []

    def _microcompact(self, node: Node, parent: Node | None) -> None:
        """Start a context that shows everything so far again, without the results that were cleared."""
        metadata = object_of(node.lines[0].data, "microcompactMetadata")
        ids = metadata.get("compactedToolIds")
        cleared = frozenset(i for i in ids if isinstance(i, str)) if isinstance(ids, list) else frozenset()
        path = self._walk(parent, None) if cleared else []
        if path:
            self._copy_path(path, None, cleared, node.tree)

    def _walk(self, last: Node | None, first: Node | None) -> list[Node]:
        """Return the path that ends with `last` and begins with `first` (with the root, if that is not above)."""
        path: list[Node] = []
        while last is not None and (not path or path[-1] is not first):
            if self._steps > self._most_steps():
                self.notes["compactions_not_followed"] += 1
                return []
            self._steps += 1
            path.append(last)
            last = last.parent
        return path[::-1]

    def _copy_path(self, path: list[Node], parent: Node | None, cleared: frozenset[str], tree: str) -> Node:
        """Copy nodes as a path behind `parent`; what follows them in the file follows the copies from now on."""
        for node in path:
            origin = node.copy_of or node
            made = Node(node.role, node.lines, node.key, tree, None, node.results, origin)
            made.cleared = node.cleared | cleared
            self.nodes.append(made)
            self._attach(made, parent)
            made.fresh = not cleared
            self._copy[origin] = self._copy[node] = parent = made
        assert parent is not None
        return parent

    @staticmethod
    def path_to(node: Node | None) -> list[Node]:
        """Return the nodes from the root of a tree to `node`."""
        path = []
        while node is not None:
            path.append(node)
            node = node.parent
        return path[::-1]

    def _mark(self) -> None:
        """Mark the turns that the user cut off, those that ran into a limit, and those that broke off."""
        for line in self.lines:
            if line.kind == "assistant":
                if line.message.get("stop_reason") in _CUT_OFF:
                    self.node_of[line.uuid].truncated = True
            elif line.kind == "api_error" and line.says_truncated():
                node = self._above(line.parent)[0] if line.parent else None
                if node is not None:
                    node.truncated = True
            elif line.kind == "user" and line.is_interrupt():
                self._interrupt(line)
        self._mark_broken_off()

    def _mark_broken_off(self) -> None:
        """A message without a reason for its end broke off, if the version wrote reasons: most messages have one in
        every line then. Older versions write a line before the reason is known."""
        reasons = {
            node: [line.message.get("stop_reason") is not None for line in node.lines]
            for node in self.nodes
            if node.role == "assistant" and node.copy_of is None
        }
        whole = sum(all(r) for n, r in reasons.items() if n.lines[0].message.get("model") != "<synthetic>")
        none = [node for node, found in reasons.items() if not any(found)]
        for node in none:
            recent = version_of(node.lines[0]) >= _REASONS_SINCE
            if (recent or whole > len(none)) and node.lines[0].message.get("model") != "<synthetic>":
                node.truncated = True

    def _interrupt(self, line: Line) -> None:
        named = text_of(line.data, "interruptedMessageId")
        node: Node | None = self.node_of[line.uuid]
        if node is not None:
            node = node.parent if node.role == "user" else node
        for _ in range(_MARKER_REACH):  # attachments and queued prompts stand between the turn and the marker
            if node is None or node.role != "user" or node.lines[0].data.get("type") == "user":
                break
            node = node.parent
        if named and named in self._answers and (node is None or node.key != named):
            node = self._answers[named]
        if node is not None and node.role == "assistant":
            (node.copy_of or node).interrupted = True

    def contexts(self, every_branch: bool = False) -> list[Context]:
        """Return what the model saw, in the order of the first node of each tree in the file.

        `every_branch`: the branches that were given up too, each with the path above it.
        """
        trees: dict[str, list[Node]] = {}
        for node in self.nodes:
            if node.role != "microcompact":
                trees.setdefault(self._root(node).tree, []).append(node)
        return [context for members in trees.values() for context in self._of_tree(members, every_branch)]

    def _of_tree(self, members: list[Node], every_branch: bool) -> list[Context]:
        """The path to the last node of a tree is live. A path at whose end a compaction took over was live, too."""
        leaves = {max(members, key=lambda n: n.order), *(n for n in members if n in self._ends)}
        if every_branch:
            leaves.update(members)
        above: set[Node] = set()
        for leaf in leaves:
            node = leaf.parent
            while node is not None and node not in above:
                above.add(node)
                node = node.parent
        shown: set[Node] = set()
        found: list[Context] = []
        for leaf in sorted(leaves - above, key=lambda n: n.order):
            path = self._walk(leaf, None) if found else self.path_to(leaf)
            if path:
                found.append(Context(path, set(path) - shown, []))
                shown.update(path)
        found[0].abandoned.extend(n for n in members if n not in shown)
        return found
