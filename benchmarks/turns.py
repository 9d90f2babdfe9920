"""The work of the side-by-side measurements: consecutive turns of one session, as a dataset folder.

A real session is taken through `sdft prepare` and then made smaller: every text and every string in a tool's arguments
is cut to its first N characters, with the largest N for which the longest of the chosen prompts fits. Roles, calls and
their order stay as they were, and so does the way in which one turn's prompt extends the one before. Without a folder
of sessions, the project's example sessions are joined to one long session, uncut.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdft_cli.config import PrepareConfig
from sdft_cli.preparation.job import Job
from sdft_cli.preparation.pipeline import manifest_of, prepare, write
from sdft_cli.prompts.chat import ChatPrompts, load_tokenizer
from sdft_cli.prompts.teacher import load_teacher_template
from sdft_cli.records import Dataset, Message, Record, RecordRow, Session
from sdft_cli.records.types import record_id_of
from sdft_cli.traces.examples import write_examples
from sdft_cli.traces.source import resolve_source

WARM_UP = "warm-up"
"""The session of one short record, for a first step that is not measured."""

MIN_CHARACTERS = 16
"""Texts of turns from inside a session are cut to no less."""

EXAMPLES = 60
"""Example sessions that are joined."""


def _cut(value: Any, characters: int) -> Any:
    if isinstance(value, str):
        return value[:characters]
    if isinstance(value, list):
        return [_cut(item, characters) for item in value]
    if isinstance(value, dict):
        return {key: _cut(item, characters) for key, item in value.items()}
    return value


def shortened(session: Session, characters: int) -> Session:
    """Return a session whose texts are cut to so many characters."""

    def short(message: Message) -> Message:
        calls = tuple(
            replace(call, arguments=json.dumps(_cut(call.parsed_arguments(), characters), ensure_ascii=False))
            for call in message.tool_calls
        )
        return replace(message, content=message.content[:characters], tool_calls=calls)

    return replace(session, messages=tuple(map(short, session.messages)))


def joined(sessions: Sequence[Session]) -> Session:
    """Return one session that is made of all of them, one after the other."""
    return replace(
        sessions[0], session_id="examples", messages=tuple(m for session in sessions for m in session.messages)
    )


def student_tokens(prompts: ChatPrompts, session: Session, turn: int) -> int:
    """Return the length of the student's prompt at a turn."""
    row = RecordRow("", session.session_id, turn, 0, 0, 0, False)
    return len(prompts.student_ids(Record(row, session)))


def largest(fits: Callable[[int], bool], low: int, high: int) -> int:
    """Return the largest number from `low` to `high` that fits; those below one that fits do too."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def example_turns(
    prompts: ChatPrompts, sessions: Sequence[Session], count: int, prompt_tokens: int
) -> tuple[Session, list[int]]:
    """Join the example sessions; return the result, and the last `count` consecutive turns whose prompts fit."""
    session = joined(sessions)
    every = session.assistant_turns()
    last = largest(lambda i: student_tokens(prompts, session, every[i]) <= prompt_tokens, 0, len(every) - 1)
    if last + 1 < count:
        raise SystemExit(f"Only {last + 1} example turns fit into {prompt_tokens} tokens: raise --prompt-tokens.")
    return session, every[last + 1 - count : last + 1]


def characters_that_fit(prompts: ChatPrompts, session: Session, turn: int, prompt_tokens: int) -> int:
    """Return the most characters to which texts can be cut so that a turn's prompt fits; 0 if there are none."""
    longest = max(len(m.content) for m in session.messages)
    return largest(
        lambda n: n == 0 or student_tokens(prompts, shortened(session, n), turn) <= prompt_tokens, 0, longest
    )


def real_turns(
    prompts: ChatPrompts, turns_of: Mapping[str, Sequence[int]], sessions: Sequence[Session], count: int, cap: int
) -> tuple[Session, list[int], int]:
    """Cut a real session so that `count` consecutive turns fit into `cap` tokens; return it, them, and the characters.

    The turns come from inside a session, so that they share a past: behind `count` turns, behind half as many, or else
    from its start; the first of these for which texts of `MIN_CHARACTERS` fit. Of the sessions that are long enough,
    the one whose texts are cut the least.
    """
    for past in (count, count // 2, 0):
        found = []
        for session in sessions:
            turns = sorted(turns_of.get(session.session_id, ()))[past : past + count]
            if len(turns) == count:
                found.append((characters_that_fit(prompts, session, turns[-1], cap), session, turns))
        best = max(found, key=lambda f: f[0], default=None)
        if best and best[0] >= (MIN_CHARACTERS if past else 1):
            return shortened(best[1], best[0]), best[2], best[0]
    raise SystemExit(
        f"No session has {count} turns that fit into {cap} tokens, even if cut: change --turns or the cap."
    )


def row_of(prompts: ChatPrompts, session: Session, turn: int) -> RecordRow:
    """Measure a turn."""
    row = RecordRow(record_id_of(session.session_id, turn), session.session_id, turn, 0, 0, 0, False)
    record = Record(row, session)
    return replace(
        row,
        prompt_tokens=len(prompts.student_ids(record)),
        teacher_prompt_tokens=len(prompts.teacher_ids(record)),
        reference_tokens=len(prompts.reference_ids(record)),
        has_tool_call=bool(record.reference.tool_calls),
    )


def write_turns(
    folder: Path, model: str, sessions: Path | None, count: int, prompt_tokens: int
) -> tuple[Path, dict[str, Any]]:
    """Write a dataset folder of `count` turns, and a warm-up record; return it, and what it is."""
    with tempfile.TemporaryDirectory() as scratch:
        if sessions is None:
            write_examples(Path(scratch), EXAMPLES)
        source = resolve_source(str(sessions or scratch))
        config = PrepareConfig(source="turns", model=model, validation_fraction=0, redact=False)
        prompts = ChatPrompts(load_tokenizer(model), load_teacher_template(config.teacher_template))
        found = prepare(source, Job(config, prompts, None))
    characters = None
    if sessions is None:
        session, turns = example_turns(prompts, found.sessions, count, prompt_tokens)
    else:
        turns_of: dict[str, list[int]] = {}
        for row in found.rows:
            turns_of.setdefault(row.session_id, []).append(row.turn_index)
        session, turns, characters = real_turns(prompts, turns_of, found.sessions, count, prompt_tokens)
    hello = Session(WARM_UP, (Message("user", "Say hello."), Message("assistant", "Hello.")), session.tools)
    rows = [row_of(prompts, session, turn) for turn in turns]
    small = replace(
        found, sessions=[session, hello], rows=[*rows, row_of(prompts, hello, 1)], rejected=[], near=[], held_out=set()
    )
    out = write(small, manifest_of(config, source, prompts, small), folder / "turns", "")
    return out, {
        "source": "example sessions, joined" if sessions is None else "real session",
        "texts_cut_to_characters": characters,
        "turns": count,
        "turns_before": sum(turn < turns[0] for turn in session.assistant_turns()),
        "student_prompt_tokens": [row.prompt_tokens for row in rows],
        "teacher_prompt_tokens": [row.teacher_prompt_tokens for row in rows],
    }


def read_turns(data: Dataset, count: int) -> tuple[list[Record], Record]:
    """Return the last `count` turns of a folder that `write_turns` wrote, and the warm-up record."""
    turns = [r for r in data.train if r.session.session_id != WARM_UP]
    (hello,) = (r for r in data.train if r.session.session_id == WARM_UP)
    return turns[-count:], hello
