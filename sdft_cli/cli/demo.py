"""`sdft demo`: the whole path on the project's own example sessions and a real 135M model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdft_cli.cli.support.common import command, print_json
from sdft_cli.cli.support.options import AsJson, option
from sdft_cli.notices import say

if TYPE_CHECKING:
    from sdft_cli.stages.whole_run import WholeSettings
    from sdft_cli.traces.examples import Subset

PREPARATION = {
    "max_seq_tokens": 1024,
    "max_prompt_tokens": 896,
    "max_rollout_tokens": 128,
    "validation_fraction": 0.2,
    "teacher_template": "again",
}
EVALUATION = {
    "max_new_tokens": 64,
    "max_records_per_pass": 64,
    "drift_tokens": 16,
    "general": 60,
    "questions": 60,
}
SESSIONS = 72
SUBSET: Subset = "few"
"""Of the kinds of example sessions: what 135M parameters learn in these minutes."""
QUICK = {"sessions": 12, "steps": 1}
QUICK_TRAINING = {
    "gate.records": 4,
    "gate.max_new_tokens": 16,
    "optim.turns_per_step": 2,
    "heldout.records": 2,
    "heldout.max_new_tokens": 16,
}
"""A little of everything; so few sessions may leave the gate undecided."""
QUICK_EVALUATION = {"max_new_tokens": 16, "general": 2, "questions": 2, "limit": 4}
QUICK_MERGE = {"prompts": 2}


@command
def demo(
    out: Annotated[Path, typer.Option(help="The folder to create.")] = Path("demo"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing demo folder.")] = False,
    steps: Annotated[int | None, option(help="Optimiser steps.", left_out="the profile's", panel="Size")] = None,
    sessions: Annotated[
        int | None, option(min=12, metavar="N", help="Number of example sessions.", left_out=str(SESSIONS))
    ] = None,
    seed: Annotated[int, option(help="Seed of everything.")] = 0,
    control: Annotated[
        bool,
        option("--control", help="Train the control arm (--objective sft) too, at the same rate, and compare the two."),
    ] = False,
    quick: Annotated[
        bool, option("--quick", help="One step on 12 sessions and a small evaluation: does all of it run here?")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Prepare, train, merge and evaluate on made-up sessions with SmolLM2-135M; 8 to 13 minutes on two cores.

    Example: sdft demo --out demo
    """
    import gguf  # noqa: F401  # else the conversion of the model would find out that the extra is missing

    from sdft_cli.errors import UsageError
    from sdft_cli.stages.run_manifest import RunManifest
    from sdft_cli.stages.whole_run import WholeRun

    if quick and (sessions is not None or steps is not None):
        raise UsageError("--quick sets the number of sessions and steps: leave --sessions and --steps out.")
    steps = QUICK["steps"] if quick else steps
    settings = _settings(out, steps, seed, control, quick)
    _write_sessions(out, QUICK["sessions"] if quick else sessions or SESSIONS, seed, overwrite)
    whole = WholeRun(RunManifest.new(out, None), settings)
    whole.tables = not as_json
    whole.run()
    if as_json:
        print_json(whole.document())
    say(f"Done in {whole.seconds:.0f} s. The answers are in {out / 'eval.json'}, the model is {out / 'run/merged'},")
    say(f"and a page to look at is {out / 'report.html'}.")


def _settings(out: Path, steps: int | None, seed: int, control: bool, quick: bool) -> WholeSettings:
    from sdft_cli.config import EvalConfig, MergeConfig, PrepareConfig, build, load_train_config
    from sdft_cli.stages.whole_run import WholeSettings

    train = load_train_config(
        "cpu-demo", (), {"optim.max_steps": steps, "seed": seed} | (QUICK_TRAINING if quick else {})
    )
    given = {"source": str(out / "sessions"), "model": train.model, "seed": seed}
    evaluate = EVALUATION | {"seed": seed} | (QUICK_EVALUATION if quick else {})
    merge = build(MergeConfig, QUICK_MERGE if quick else {})
    return WholeSettings(build(PrepareConfig, PREPARATION | given), train, merge, build(EvalConfig, evaluate), control)


def _write_sessions(out: Path, sessions: int, seed: int, overwrite: bool) -> None:
    """Make the demo's folder, with example sessions in it."""
    import shutil

    from sdft_cli.records.folders import check_output_folder
    from sdft_cli.records.json_files import write_json
    from sdft_cli.traces.examples import write_examples

    check_output_folder(out, "sdft-demo.json", overwrite)
    if out.exists():
        shutil.rmtree(out)
    write_examples(out / "sessions", sessions, seed, SUBSET)
    write_json(out / "sdft-demo.json", {"sessions": sessions, "seed": seed})
