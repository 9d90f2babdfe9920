"""Token counts of every turn: sums of blocks against rendering and encoding each turn alone.

    python -m benchmarks.bench_prepare SESSIONS [--template qwen3_5_nothink] [--every 1] [--json FILE]

Both sides count the same turns of the same sessions with the same tokenizer, one after the other in one process, and
the counts are compared; then, untimed, the token ids. `--every N` gives the plain side every N-th turn only; rates are
per record. Also: the floor of the machine (one parse of the files, one encode of the distinct text), and how time
grows with turns.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdft_cli.engine.models.names import resolve_model
from sdft_cli.preparation.reasoning import strip_session
from sdft_cli.prompts.chat import ChatPrompts, load_tokenizer
from sdft_cli.prompts.incremental import TokenCounter, TurnIds, TurnLengths
from sdft_cli.prompts.teacher import load_teacher_template
from sdft_cli.prompts.template import TemplateError
from sdft_cli.records import Message, Session
from sdft_cli.traces.source import read_source, resolve_source
from sdft_cli.traces.tools import with_tools

QWEN_TOKENS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]


def open_prompts(template: str) -> ChatPrompts:
    """Open SmolLM2's tokenizer with its own chat template or with one of those that trl ships."""
    tokenizer = load_tokenizer(resolve_model("smollm2-135m"))
    if template != "smollm2":
        import trl

        path = Path(trl.__file__).parent / "chat_templates" / f"{template}.jinja"
        tokenizer.chat_template = path.read_text(encoding="utf-8")
        tokenizer.add_tokens(QWEN_TOKENS)
    return ChatPrompts(tokenizer, load_teacher_template())


def countable(session: Session) -> list[int]:
    """Return the assistant turns that have a user message before them."""
    first = next((i for i, m in enumerate(session.messages) if m.role == "user"), len(session.messages))
    return [turn for turn in session.assistant_turns() if turn > first]


def plain_ids(prompts: ChatPrompts, session: Session, turn: int) -> TurnIds:
    """Encode a turn plainly: transformers' template and tokenizer, nothing of ours, nothing remembered."""
    tokenizer = prompts.tokenizer

    def ids(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> list[int]:
        text = tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        found: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return found

    tools = [t.as_openai() for t in session.tools] or None
    context = [prompts.form.write(m) for m in session.messages[:turn]]
    reference = prompts.reference_text(session.messages[turn])
    (part,) = prompts.teacher.parts
    last = prompts.form.write(Message("user", part.filled(reference)))
    return TurnIds(
        ids(context, tools),
        ids([*context, last], tools),
        [*tokenizer.encode(reference, add_special_tokens=False), prompts.turn_end_id],
    )


def plain_lengths(prompts: ChatPrompts, session: Session, turn: int) -> TurnLengths:
    """Count a turn plainly."""
    return plain_ids(prompts, session, turn).lengths


def differing_ids(counter: TokenCounter, sessions: list[Session], every: int) -> dict[str, int]:
    """Compare the token ids of every N-th turn; where a control token is spelled, with our own full rendering."""
    found = Counter[str]()
    for session in sessions:
        counted = counter.session(session)
        for number, turn in enumerate(countable(session)):
            try:
                counted.lengths(turn)
            except TemplateError:
                continue
            if number % every:
                continue
            found["turns"] += 1
            spelled = spells_control_tokens(counter.prompts, session, turn)
            found["with_a_spelled_control_token"] += spelled
            found["differ_from_own_full_rendering"] += not counted.holds_at(turn)
            if not spelled:
                found["differ_from_plain"] += counted.ids(turn) != plain_ids(counter.prompts, session, turn)
        counter.prompts.encoder.forget()
    return dict(found)


def spells_control_tokens(prompts: ChatPrompts, session: Session, turn: int) -> bool:
    """Say whether the text up to a turn spells an added token, which plain encoding takes for the token itself."""
    control = prompts.encoder.control
    shown: list[Any] = [prompts.form.write(m) for m in session.messages[: turn + 1]]
    text = json.dumps([*shown, *(t.as_openai() for t in session.tools)], ensure_ascii=False)
    return any(token in text for token in control.tokens)


def ours(counter: TokenCounter, sessions: list[Session]) -> tuple[float, dict[tuple[str, int], TurnLengths]]:
    """Count every turn by sums; return seconds and counts."""
    start, found = time.perf_counter(), {}
    for session in sessions:
        counted, last = counter.session(session), None
        for turn in countable(session):
            try:
                found[session.session_id, turn] = counted.lengths(turn)
                last = turn
            except TemplateError:
                continue
        if last is not None and not counted.holds_at(last):
            raise SystemExit(f"{session.session_id}: the sums do not hold")
        counter.prompts.encoder.forget()
    return time.perf_counter() - start, found


def floor(paths: list[Path], prompts: ChatPrompts, sessions: list[Session]) -> dict[str, float]:
    """One parse of the files and one encode of the distinct text of the sessions."""
    from sdft_cli.traces.rows import read_lines

    start = time.perf_counter()
    for path in paths:
        for _ in read_lines(path):
            pass
    parsed = time.perf_counter()
    backend = prompts.tokenizer.backend_tokenizer
    characters = 0
    for session in sessions:
        for m in session.messages:
            for text in (m.content, *(c.arguments for c in m.tool_calls)):
                backend.encode(text, add_special_tokens=False)
                characters += len(text)
    return {"parse_s": parsed - start, "encode_s": time.perf_counter() - parsed, "characters": characters}


def growth(counter: TokenCounter, turns: int) -> dict[str, float]:
    """Time one session and another with twice its turns; the best of 3."""

    def session(count: int) -> Session:
        words = " ".join(f"word{i}" for i in range(60))
        messages = [Message("user", "Do it.")]
        for i in range(count):
            messages += [Message("assistant", f"Step {i}. {words}"), Message("user", f"Go on, {i}. {words}")]
        return Session("growth", tuple(messages))

    seconds = {n: min(ours(counter, [session(n)])[0] for _ in range(3)) for n in (turns, 2 * turns)}
    return {"turns": turns, "seconds": seconds[turns], "seconds_doubled": seconds[2 * turns]}


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sessions", type=Path)
    parser.add_argument("--template", default="smollm2")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--turns", type=int, default=400, help="of the session for the growth")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    prompts = open_prompts(arguments.template)
    source = resolve_source(str(arguments.sessions))
    sessions = [strip_session(s, Counter())[0] for s in with_tools(read_source(source).sessions)]
    sessions = [replace(s, metadata={}) for s in sessions]
    start = time.perf_counter()
    counter = TokenCounter(prompts)
    probe = time.perf_counter() - start
    seconds, counts = ours(counter, sessions)
    chosen = list(counts)[:: arguments.every]
    by_id = {s.session_id: s for s in sessions}
    start = time.perf_counter()
    plain = {(name, turn): plain_lengths(prompts, by_id[name], turn) for name, turn in chosen}
    plain_seconds = time.perf_counter() - start
    differing = [key for key in chosen if plain[key] != counts[key]]
    spelled = [key for key in differing if spells_control_tokens(prompts, by_id[key[0]], key[1])]
    result = {
        "template": arguments.template,
        "local": counter.local,
        "probe_s": probe,
        "records": len(counts),
        "prompt_tokens": sum(c.student + c.teacher for c in counts.values()),
        "seconds": seconds,
        "records_per_s": len(counts) / seconds,
        "plain_records": len(chosen),
        "plain_seconds": plain_seconds,
        "plain_records_per_s": len(chosen) / plain_seconds,
        "ratio": (len(counts) / seconds) / (len(chosen) / plain_seconds),
        "differing": len(differing),
        "differing_where_no_control_token_is_spelled": len(differing) - len(spelled),
        "ids": differing_ids(counter, sessions, arguments.every),
        "floor": floor(list(source.files), prompts, sessions),
        "growth": growth(counter, arguments.turns),
    }
    result["growth"]["ratio"] = result["growth"]["seconds_doubled"] / result["growth"]["seconds"]
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
