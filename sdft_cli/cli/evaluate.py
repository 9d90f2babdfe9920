"""`sdft eval`: base, tuned, merged and control against each other, on held-out records and on general prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdft_cli.cli.support import completion
from sdft_cli.cli.support.common import command, print_json
from sdft_cli.cli.support.options import AsJson, DatasetPath, ProjectFile, given_settings, option, setting
from sdft_cli.notices import say
from sdft_cli.places import RUN, RUNS_ROOT, meant_folder
from sdft_cli.stages.evaluate import run_evaluation, update_card
from sdft_cli.stages.folders import newest_dataset, newest_run
from sdft_cli.stages.project import read_project

if TYPE_CHECKING:
    from sdft_cli.config import EvalConfig


@command
def evaluate(
    context: typer.Context,
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN|MODEL]",
            help="A run folder, or a model.",
            show_default="the newest run",
            autocompletion=completion.finished_runs,
        ),
    ] = None,
    dataset: DatasetPath = None,
    out: Annotated[Path | None, option(help="The JSON file to write.", left_out="<run>/eval.json")] = None,
    details: Annotated[bool, typer.Option("--details", help="Show results by tool and by position too.")] = False,
    as_json: AsJson = False,
    best: Annotated[
        bool,
        option(
            "--best", help="Measure the run's adapter that was best on held-out records, not the last.", panel="Models"
        ),
    ] = False,
    merged: Annotated[bool, option("--merged", help="Measure the run's merged checkpoint too.")] = False,
    control: Annotated[
        list[Path] | None,
        option(
            help="Measure the tuned model of this run too, e.g. one of --objective sft. Repeatable.",
            left_out="none",
            autocompletion=completion.finished_runs,
        ),
    ] = None,
    max_new_tokens: Annotated[int | None, setting("eval.max_new_tokens", panel="Settings")] = None,
    limit: Annotated[int | None, setting("eval.limit")] = None,
    general: Annotated[int | None, setting("eval.general")] = None,
    questions: Annotated[int | None, setting("eval.questions")] = None,
    seed: Annotated[int | None, setting("eval.seed")] = None,
    project: ProjectFile = None,
    lm_eval: Annotated[
        str | None,
        setting(
            "eval.lm_eval",
            panel="lm-evaluation-harness",
            help="Tasks of lm-evaluation-harness too, e.g. arc_easy,hellaswag.",
        ),
    ] = None,
    lm_eval_path: Annotated[Path | None, setting("eval.lm_eval_path")] = None,
    lm_eval_limit: Annotated[int | None, setting("eval.lm_eval_limit")] = None,
) -> None:
    """Measure what was learned and what was forgotten: base against tuned, with intervals.

    Did it learn: likelihood of the expert's turns, KL from the teacher, tool calls, prose, on held-out records. Did it
    forget: drift from the base on general prompts, questions, tasks of lm-evaluation-harness. Does it copy. With a
    model instead of a run, that model alone is measured.

    Example: sdft eval runs/my-run data/my-sessions --control runs/my-sft-run
    """
    from sdft_cli.records import read_dataset

    if subject is not None:
        _check_subject(Path(subject))
    chosen = subject or str(newest_run())
    settings = read_project(project).of("eval")
    config = _config_of(settings, given_settings(context), lm_eval, lm_eval_path, lm_eval_limit)
    data = read_dataset(dataset or newest_dataset())

    from sdft_cli.records.json_files import write_json
    from sdft_cli.report import evaluation, terminal
    from sdft_cli.run_folder import is_run, read_run

    of_run = is_run(Path(chosen))
    target = _target(Path(chosen), of_run, out, best, general)
    result = run_evaluation(chosen, data, config, best, merged, control or ())
    write_json(target, result)
    if of_run:
        update_card(read_run(Path(chosen), best), result)
    if as_json:
        print_json(evaluation.summaries(result))
    else:
        terminal.stdout().print(evaluation.report(result, details))
    say(f"Every answer and number: {target}; next: {_next(Path(chosen), target, of_run, merged)}")


def _next(subject: Path, target: Path, of_run: bool, merged: bool) -> str:
    if not of_run:
        return f"as a page, sdft report {target}"
    if (subject / "merged").is_dir() or merged:
        return f"beside another run, sdft compare {subject} OTHER_RUN"
    return f"sdft merge {subject} --bf16"


def _check_subject(subject: Path) -> None:
    """Raises `UsageError` where what is meant is a run, and there is none."""
    from sdft_cli.errors import UsageError

    if subject.exists():
        return
    if RUNS_ROOT in subject.parents:
        near = meant_folder(subject, RUN, RUNS_ROOT, "name the folder of one, or a model.")
        raise UsageError(f"There is no run {subject}: {near}")
    if (RUNS_ROOT / subject / RUN).is_file():
        raise UsageError(f"There is no run {subject}: did you mean {RUNS_ROOT / subject}?")


def _target(subject: Path, of_run: bool, out: Path | None, best: bool, general: int | None) -> Path:
    """Return the file to write, which can be written.

    Raises:
        UsageError: the drift of a model alone is asked for.
    """
    from sdft_cli.errors import UsageError
    from sdft_cli.records.folders import writable_file

    if general and not of_run:
        raise UsageError("--general evaluates a model's drift from its base: give a run, or leave it out.")
    return writable_file(
        out or (subject / f"eval{'-best' * best}.json" if of_run else Path(f"eval-{subject.name}.json"))
    )


def _config_of(
    settings: dict[str, Any], given: dict[str, Any], tasks: str | None, folder: Path | None, limit: int | None
) -> EvalConfig:
    """Make the configuration of the project file's settings and the options that were given, those of --lm-eval last.

    Raises:
        UsageError: --lm-eval names no task, its folder is none, or a value is out of range.
    """
    from sdft_cli.config import EvalConfig, build
    from sdft_cli.errors import UsageError

    names = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    harness = (tasks, folder, limit)
    listed = names or (settings.get("lm_eval") if tasks is None else None)
    if not listed and any(option is not None for option in harness):
        raise UsageError("--lm-eval names no task: give it some, or leave out what belongs to it.")
    if folder is not None and not folder.is_dir():
        raise UsageError(f"{folder} is no folder: give the one that holds your tasks' YAML files.")
    of_harness = {"lm_eval": names or None, "lm_eval_path": str(folder) if folder else None, "lm_eval_limit": limit}
    return build(EvalConfig, {**settings, **{k: v for k, v in {**given, **of_harness}.items() if v is not None}})
