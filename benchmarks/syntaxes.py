"""Do calls come back from what chat templates write? Many made-up turns through each template.

    python -m benchmarks.syntaxes [--turns 10000] [--only NAME] [--seed 0]

Each turn either comes back exactly, prose and calls, or `comes_back` says that it does not, or the template refuses it.
A turn that was read as another one, silently, is counted as wrong; so is a call read out of a turn that was cut off and
that is none of the turn's. There must be none. The exit code says so.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter

from rich.console import Console
from rich.table import Table

from benchmarks.call_turns import FAMILIES, prompts_of, turns
from sdft_cli.errors import DataError
from sdft_cli.prompts.chat import ChatPrompts
from sdft_cli.prompts.syntaxes.turns import ParsedTurn
from sdft_cli.prompts.tool_calls import comes_back
from sdft_cli.records import Message, ToolSchema


def exactly(turn: ParsedTurn, message: Message) -> bool:
    """Say whether a turn was read as what it is, number for number, and nothing else."""
    read = [(call.name, json.dumps(call.arguments, sort_keys=True)) for call in turn.calls]
    made = [(call.name, json.dumps(json.loads(call.arguments), sort_keys=True)) for call in message.tool_calls]
    return read == made and not turn.errors and message.content.strip() in {turn.content, turn.thought.strip()}


def outcome(prompts: ChatPrompts, message: Message, tool: ToolSchema) -> str:
    """Return what became of a turn: `back`, `not back`, `refused`, or `WRONG`."""
    syntax = prompts.syntax.syntax
    if syntax is None:
        raise SystemExit(f"no syntax was found: {prompts.syntax.reason}")
    try:
        text = prompts.reference_text(message)
    except DataError:
        return "refused"
    if not comes_back(text, message, [tool], syntax):
        return "not back"
    whole = syntax.parse(text, [tool])
    cuts = [syntax.parse(text[:cut], [tool]) for cut in (len(text) // 3, len(text) // 2, len(text) - 3)]
    prefixes = all(cut.calls == whole.calls[: len(cut.calls)] for cut in cuts)
    return "back" if exactly(whole, message) and prefixes else "WRONG"


def main() -> int:
    """Print a row per template; 1 if anything was read wrongly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=10_000)
    parser.add_argument("--only", choices=FAMILIES)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    table = Table("template", "syntax", "turns", "back", "not back, told", "refused", "wrong", "seconds")
    wrong = 0
    for name in [options.only] if options.only else FAMILIES:
        prompts, started, counts = prompts_of(name), time.process_time(), Counter[str]()
        for _, (message, tool) in zip(range(options.turns), turns(options.seed), strict=False):
            counts[outcome(prompts, message, tool)] += 1
        found, seconds = prompts.syntax.syntax, time.process_time() - started
        numbers = (options.turns, *(counts[key] for key in ("back", "not back", "refused", "WRONG")))
        table.add_row(name, found.name if found else "-", *(f"{n:,}" for n in numbers), f"{seconds:.0f}")
        wrong += counts["WRONG"]
        print(name, *numbers, file=sys.stderr, flush=True)
    Console().print(table)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
