"""The options that the side-by-side measurements share, and the work that they describe."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.engine_side import SHARED, VARIANTS
from benchmarks.side_by_side import Job
from benchmarks.turns import write_turns

TRL = "trl"
"""The name of TRL's side."""


def options(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the shared options."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sessions", type=Path, nargs="?", help="a folder of sessions")
    parser.add_argument("--examples", action="store_true", help="the example sessions (the default)")
    parser.add_argument("--model", default="smollm2-135m")
    for name, value in (("prompt-tokens", 1024), ("rollout-tokens", 64), ("lora-rank", 16), ("repetitions", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--only", action="append", choices=[*VARIANTS, TRL], help="a side; may be given more than once")
    parser.add_argument("--json", type=Path)
    return parser


@contextmanager
def prepared_job(arguments: argparse.Namespace, turns: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Write the turns to a folder that lasts for the block; yield what all jobs share, and the settings, printed."""
    if arguments.sessions and arguments.examples:
        raise SystemExit("Give either SESSIONS or --examples.")
    from sdft_cli.engine.models.names import resolve_model

    same = {name: getattr(arguments, name) for name in ("rollout_tokens", "lora_rank", "threads", "dtype")}
    with tempfile.TemporaryDirectory() as scratch:
        model = resolve_model(arguments.model)
        data, work = write_turns(Path(scratch), model, arguments.sessions, turns, arguments.prompt_tokens)
        settings = {
            "model": arguments.model,
            "repetitions": arguments.repetitions,
            "prompt_tokens_cap": arguments.prompt_tokens,
            **same,
            **SHARED,
            "variants": VARIANTS,
            "work": work,
            "versions": versions(),
        }
        print("settings", json.dumps(settings))
        yield {**same, "model": model, "data": str(data)}, settings


def versions() -> dict[str, str]:
    """Return the versions of what is measured."""
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "peft", "trl", "accelerate")}


def save(arguments: argparse.Namespace, result: dict[str, Any]) -> None:
    """Write the result where `--json` says."""
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
