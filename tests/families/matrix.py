"""A family through all commands, in this process: prepare, train, the control arm, merge, eval."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

STAGES = ("prepare", "train", "control", "merge", "eval")
"""What is run, in this order."""
PREPARATION = (
    *("--teacher-template", "repeat", "--max-seq-tokens", "8192", "--max-prompt-tokens", "7168"),
    *("--max-rollout-tokens", "512", "--no-redact", "--validation-fraction", "0.4", "--workers", "1"),
)
SETTINGS = {
    "lora.rank": "4",
    "lora.target_modules": "all-linear",
    "rollout.max_new_tokens": "4",
    "optim.turns_per_step": "2",
    "optim.max_steps": "2",
    "optim.warmup_steps": "0",
    "checkpoint.every": "2",
    "heldout.every": "2",
    "heldout.records": "2",
    "heldout.max_new_tokens": "4",
    "gate.records": "2",
    "gate.max_new_tokens": "4",
    "gate.resamples": "50",
    "products": "exact",  # else each run measures them
}
EVALUATION = ("--limit", "2", "--general", "2", "--questions", "2", "--max-new-tokens", "4")


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "read",
            "description": "Read a file.",
            "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
        },
    }
]


def write_sessions(folder: Path, count: int = 6) -> Path:
    """Write short made-up sessions, a question, a call and an answer each, as OpenAI messages; return their folder."""
    folder.mkdir(parents=True)
    for number in range(count):
        call = {"name": "read", "arguments": json.dumps({"path": f"src/file{number}.py"})}
        messages = [
            {"role": "user", "content": f"What does file {number} say about {7 * number + 3}?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": f"call_{number}", "type": "function", "function": call}],
            },
            {"role": "tool", "tool_call_id": f"call_{number}", "content": f"x = {number * number}"},
            {"role": "assistant", "content": f"It sets x to {number * number}."},
        ]
        line = json.dumps({"messages": messages, "tools": TOOLS})
        (folder / f"session{number}.jsonl").write_text(f"{line}\n", encoding="utf-8")
    return folder


@dataclass
class Cell:
    """How a stage of a family ended: exit code, its last sentence; `crash` names an exception that no one meant."""

    code: int
    sentence: str = ""
    crash: str = ""
    said: list[str] = field(default_factory=list)

    @property
    def right(self) -> bool:
        return self.code == 0 and not self.crash


def sdft(*arguments: object) -> Cell:
    """Run a command in this process."""
    from typer.testing import CliRunner

    from sdft_cli.cli.main import app

    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    said = [line for line in done.stderr.splitlines() if line.strip()]
    crash = ""
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        crash = f"{type(done.exception).__name__}: {done.exception}"
    return Cell(done.exit_code, said[-1].removeprefix("sdft: ") if said and done.exit_code else "", crash, said)


def settings(given: dict[str, str] | None = None) -> Iterator[str]:
    """Yield the options of a very short run."""
    for key, value in {**SETTINGS, **(given or {})}.items():
        yield from ("--set", f"{key}={value}")


def run_family(model: Path, sessions: Path, folder: Path, given: dict[str, str] | None = None) -> dict[str, Cell]:
    """Run the stages on a model, up to the first that is not right; return how each ended.

    Args:
        model: a model's folder.
        sessions: a folder of sessions.
        folder: where dataset and runs are written.
        given: settings besides those of `SETTINGS`.
    """
    data = folder / "data"
    start = ("train", data, "--profile", "cpu-demo", "--gate", "warn", "--model", model, *settings(given))
    run = folder / "run"
    commands: dict[str, tuple[object, ...]] = {
        "prepare": ("prepare", sessions, "--model", model, "--out", data, *PREPARATION),
        "train": (*start, "--out", run),
        "control": (*start, "--out", folder / "control", "--objective", "sft"),
        "merge": ("merge", run, "--dtype", "float32", "--prompts", "2"),
        "eval": ("eval", run, data, "--merged", "--control", folder / "control", *EVALUATION),
    }
    found: dict[str, Cell] = {}
    for stage, arguments in commands.items():
        found[stage] = sdft(*arguments)
        if not found[stage].right:
            break
    return found
