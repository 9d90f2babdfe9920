"""`sdft demo`: the whole path on the project's own example sessions and a real 135M model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdft_cli.cli.support.common import command, print_json
from sdft_cli.cli.support.options import AsJson, option
from sdft_cli.notices import say

if TYPE_CHECKING:
    from sdft_cli.records import Dataset
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
QUICK_GATE = {"gate.records": 6, "gate.max_new_tokens": 16}
"""So few sessions leave the gate undecided."""
QUICK_EVALUATION = {"max_new_tokens": 16, "general": 4, "questions": 4, "limit": 8}


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
        bool, option("--control", help="Train the control arm (--objective sft) too, and compare the two.")
    ] = False,
    quick: Annotated[
        bool, option("--quick", help="One step on 12 sessions and a small evaluation: does all of it run here?")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Prepare, train, merge and evaluate on made-up sessions with SmolLM2-135M; about 13 minutes on two cores.

    Example: sdft demo --out demo
    """
    import shutil

    import gguf  # noqa: F401  # else the conversion of the model would find out that the extra is missing

    from sdft_cli.config import EvalConfig, build, load_train_config
    from sdft_cli.engine.train.run import Job
    from sdft_cli.errors import UsageError
    from sdft_cli.records.folders import check_output_folder
    from sdft_cli.records.json_files import write_json
    from sdft_cli.report import evaluation, terminal
    from sdft_cli.run_folder import read_run
    from sdft_cli.stages.evaluate import run_evaluation
    from sdft_cli.stages.merge import run_merge
    from sdft_cli.stages.model_card import evaluated_card
    from sdft_cli.stages.train import run_training

    evaluation_settings = EVALUATION | {"seed": seed}
    if quick and (sessions is not None or steps is not None):
        raise UsageError("--quick sets the number of sessions and steps: leave --sessions and --steps out.")
    if quick:
        steps = QUICK["steps"]
        evaluation_settings |= QUICK_EVALUATION
    sessions = QUICK["sessions"] if quick else sessions or SESSIONS
    check_output_folder(out, "sdft-demo.json", overwrite)
    if out.exists():
        shutil.rmtree(out)
    start = time.monotonic()
    show = (lambda table: None) if as_json else terminal.stdout().print
    clock = lambda: f"{time.monotonic() - start:.0f} s"  # noqa: E731
    flags = {"optim.max_steps": steps, "seed": seed, **(QUICK_GATE if quick else {})}
    train_config = load_train_config("cpu-demo", (), flags)

    say(f"1/4 prepare: {sessions} example sessions")
    data = _prepared(out, train_config.model, sessions, seed)
    show(terminal.funnel_table(data.manifest["funnel"]))
    say(f"2/4 train ({clock()})")
    run_training(Job(train_config, data, out / "run"))
    if control:
        say(f"2/4 train the control arm ({clock()})")
        run_training(Job(train_config.model_copy(update={"objective": "sft"}), data, out / "run-sft"))
    say(f"3/4 merge ({clock()})")
    check = run_merge(read_run(out / "run"), out / "run" / "merged")
    show(terminal.merge_table(check))
    say(f"4/4 eval ({clock()})")
    controls = [out / "run-sft"] if control else []
    config = build(EvalConfig, evaluation_settings)
    result = run_evaluation(str(out / "run"), data, config, controls=controls)
    write_json(out / "eval.json", result)
    evaluated_card(read_run(out / "run"), result)
    if as_json:
        print_json(evaluation.summaries(result))
    show(evaluation.report(result))
    say(f"Done in {clock()}. Read the answers in {out / 'eval.json'}, the model is in {out / 'run' / 'merged'}.")


def _prepared(out: Path, model: str, sessions: int, seed: int) -> Dataset:
    """Write example sessions and make a dataset of them."""
    from sdft_cli.config import PrepareConfig, build
    from sdft_cli.records import read_dataset
    from sdft_cli.records.json_files import write_json
    from sdft_cli.stages.prepare import run_preparation
    from sdft_cli.traces.examples import write_examples

    write_examples(out / "sessions", sessions, seed, SUBSET)
    write_json(out / "sdft-demo.json", {"sessions": sessions, "seed": seed})
    given = {"source": str(out / "sessions"), "model": model, "seed": seed}
    run_preparation(build(PrepareConfig, PREPARATION | given), out / "data")
    return read_dataset(out / "data")
