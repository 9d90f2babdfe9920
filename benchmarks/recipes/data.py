"""The datasets of each setting: one for each wording, since a record's lengths depend on it; the records are the same.

- `examples`: the project's example sessions of few kinds, as those of the demo, half of them held out.
- `real`: recorded sessions, since their prompts are far too long for a very small model on a CPU, in pieces of a few
  messages, of which the texts are cut to some characters, with the tools that the session calls and one line about
  each; the turns whose prompt then fits are left. Pieces of one session are on one side of the split.
- `continual`: two datasets of these sessions, by what their turns call: reading, then the shell and writing
  files. A run on the second goes on from the adapter of one on the first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdft_cli.traces.examples import Subset

CAPS = {"max_seq_tokens": 1280, "max_prompt_tokens": 1152, "max_rollout_tokens": 128}
HELD_OUT = 0.5
CHARACTERS = 240
"""Of a message of a real session."""
PIECE = 6
"""Messages of a piece of a real session, after the user's latest one before them."""
SUBSET: Subset = "few"
SKILLS = {"a": {"Read"}, "b": {"Bash", "Write"}}
"""Of the continual setting: part -> the tools that its sessions call. Sessions that call none are in both."""


def prepared(folder: Path, setting: str, wording: str, sessions: int, real: Path | None) -> list[Path]:
    """Return the datasets of a setting under a wording, in the order of training; made once.

    Args:
        folder: of the study.
        setting, wording: see above.
        sessions: how many example sessions.
        real: folder of recorded sessions, for `real`.
    """
    sources = {"examples": _examples, "real": _real, "continual": _continual}[setting](folder, sessions, real)
    return [_dataset(source, folder / "data" / f"{source.name}-{wording}", wording) for source in sources]


def _dataset(source: Path, target: Path, wording: str) -> Path:
    from sdft_cli.config import PrepareConfig, build
    from sdft_cli.prompts.teacher import load_teacher_template
    from sdft_cli.stages.prepare import run_preparation

    if (target / "manifest.json").is_file():
        made_with = json.loads((target / "manifest.json").read_text(encoding="utf-8"))["teacher_text"]
        if made_with != load_teacher_template(wording).text:
            raise SystemExit(f"{target} was made with another text of {wording}: choose another --out.")
    else:
        settings = {
            "source": str(source),
            "model": "smollm2-135m",
            "validation_fraction": HELD_OUT,
            "teacher_template": wording,
            **CAPS,
        }
        run_preparation(build(PrepareConfig, settings), target)
    return target


def _examples(folder: Path, sessions: int, real: Path | None) -> list[Path]:
    from sdft_cli.traces.examples import write_examples

    return [
        _once(folder / "sessions" / f"examples-{sessions}", lambda target: write_examples(target, sessions, 0, SUBSET))
    ]


def _once(target: Path, write: Callable[[Path], Any]) -> Path:
    """Return a folder of sessions, written whole or not at all; what stands there has to be what would be written."""
    scratch = target.with_name(f"{target.name}.part")
    rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    write(scratch)
    if not target.is_dir():
        scratch.rename(target)
    elif _texts(scratch) != _texts(target):
        raise SystemExit(f"{target} holds sessions of an earlier version: choose another --out.")
    rmtree(scratch, ignore_errors=True)
    return target


def _texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def _continual(folder: Path, sessions: int, real: Path | None) -> list[Path]:
    from sdft_cli.traces.examples import example_session

    def tools(lines: Sequence[dict[str, Any]]) -> set[str]:
        blocks = [b for line in lines for b in _blocks(line.get("message", {}))]
        return {block["name"] for block in blocks if block.get("type") == "tool_use"}

    def write(skill: set[str]) -> Callable[[Path], None]:
        def into(target: Path) -> None:
            for index in range(sessions * 2):
                lines = example_session(index, 0, SUBSET)
                if tools(lines) <= skill:
                    _write_lines(target / f"{index:04d}.jsonl", lines)

        return into

    return [_once(folder / "sessions" / f"skill-{name}-{sessions}", write(skill)) for name, skill in SKILLS.items()]


def _blocks(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    return content if isinstance(content, list) else []


def _real(folder: Path, sessions: int, real: Path | None) -> list[Path]:
    """Prepare the sessions as they are; write the longest conversation of each in pieces."""
    if real is None:
        raise SystemExit("the setting real needs sessions: name their folder with --real.")

    def write(target: Path) -> None:
        from sdft_cli.config import PrepareConfig, build
        from sdft_cli.records import Record, read_dataset
        from sdft_cli.records.export import openai_row
        from sdft_cli.stages.prepare import run_preparation

        whole = folder / "data" / "real-whole"
        if not whole.is_dir():
            settings = {"source": str(real), "model": "smollm2-135m", "system_prompt": "none"}
            run_preparation(build(PrepareConfig, settings), whole)
        data = read_dataset(whole)
        longest: dict[str, Record] = {}
        for record in (*data.train, *data.validation):
            known = longest.get(record.row.session_id)
            if known is None or len(record.context) > len(known.context):
                longest[record.row.session_id] = record
        for session, record in longest.items():
            _write_lines(target / f"{session}.jsonl", pieces(openai_row(record), session))

    known = folder / "real.txt"
    if known.is_file() and known.read_text() != str(real.resolve()):
        raise SystemExit(f"{folder} was made of the sessions in {known.read_text()}: choose another --out.")
    known.parent.mkdir(parents=True, exist_ok=True)
    known.write_text(str(real.resolve()))
    return [_once(folder / "sessions" / "real", write)]


def pieces(row: dict[str, Any], session: str) -> list[dict[str, Any]]:
    """Cut a conversation: each assistant turn is in one piece, which begins with the user's latest message."""
    messages = [{**m, "content": (m["content"] or "")[:CHARACTERS]} for m in row["messages"] if m["role"] != "system"]
    tools = [_short(tool) for tool in row.get("tools", ()) if tool["function"]["name"] in _called(messages)]
    found: list[list[dict[str, Any]]] = []
    asked: dict[str, Any] | None = None
    for message in messages:
        full = not found or len(found[-1]) > PIECE
        if message["role"] == "user":
            asked = message
            found.append([message])
        elif full and message["role"] == "assistant" and asked:
            found.append([asked, message])
        elif found:
            found[-1].append(message)
    return [{"session_id": session, "messages": piece, "tools": tools} for piece in found]


def _called(messages: Sequence[dict[str, Any]]) -> set[str]:
    return {call["function"]["name"] for m in messages for call in m.get("tool_calls") or ()}


def _short(tool: dict[str, Any]) -> dict[str, Any]:
    """Keep the first line of a tool's description, and of its parameters names and types."""
    function = tool["function"]
    of = function["parameters"]
    parameters = {
        "type": "object",
        "properties": {name: {"type": p.get("type", "string")} for name, p in of.get("properties", {}).items()},
        "required": of.get("required", []),
    }
    line = (function["description"].strip().splitlines() or [""])[0]
    return {"type": "function", "function": {**function, "description": line, "parameters": parameters}}


def _write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
