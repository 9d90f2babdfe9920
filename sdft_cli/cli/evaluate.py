"""`sdft eval`: base against tuned on held-out records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdft_cli.cli.common import command, newest_dataset, newest_run, say

if TYPE_CHECKING:
    from sdft_cli.config import EvalConfig
    from sdft_cli.records import Dataset


@command
def evaluate(
    subject: Annotated[
        str | None, typer.Argument(metavar="[RUN|MODEL]", help="A run folder, or a model. [default: the newest run]")
    ] = None,
    dataset: Annotated[Path | None, typer.Argument(help="A dataset folder. [default: the newest under data/]")] = None,
    out: Annotated[Path | None, typer.Option(help="The JSON file to write. [default: <run>/eval.json]")] = None,
    best: Annotated[
        bool, typer.Option("--best", help="Measure the run's adapter that was best on held-out records, not the last.")
    ] = False,
    max_new_tokens: Annotated[int | None, typer.Option(help="Cap on an evaluation rollout. [default: 128]")] = None,
    limit: Annotated[int | None, typer.Option(help="Use only the first N validation records.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed. [default: 0]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summaries as JSON.")] = False,
) -> None:
    """Measure base and tuned on the validation records: KL, expert likelihood, tool calls.

    With a model instead of a run, that model alone is measured.

    Example: sdft eval runs/my-run data/my-sessions
    """
    from sdft_cli.config import EvalConfig, build
    from sdft_cli.records import read_dataset

    chosen = subject or str(newest_run())
    given = {"max_new_tokens": max_new_tokens, "limit": limit, "seed": seed}
    config = build(EvalConfig, {k: v for k, v in given.items() if v is not None})
    data = read_dataset(dataset or newest_dataset())
    result, default = run_evaluation(chosen, data, config, best)

    from sdft_cli.engine.runs import write_json
    from sdft_cli.records.folders import writable_file
    from sdft_cli.report import terminal

    target = writable_file(out or default)
    write_json(target, result)
    if as_json:
        summaries = {name: found["summary"] for name, found in result["contenders"].items()}
        typer.echo(json.dumps(summaries, indent=2, sort_keys=True))
    else:
        terminal.stdout().print(terminal.eval_table(result))
    say(f"Every answer and number: {target}")


def run_evaluation(subject: str, data: Dataset, config: EvalConfig, best: bool = False) -> tuple[dict[str, Any], Path]:
    """Evaluate a run (base and tuned) or a model (alone); return the result and where it belongs by default."""
    from sdft_cli.engine.backend_transformers import open_for_eval
    from sdft_cli.engine.models import resolve_model
    from sdft_cli.engine.runs import is_run, read_run
    from sdft_cli.engine.sharing import choose_sharing
    from sdft_cli.errors import DataError
    from sdft_cli.evaluate.run import Contender
    from sdft_cli.evaluate.run import evaluate as run
    from sdft_cli.prompts.chat import open_prompts
    from sdft_cli.report import terminal

    if not data.validation:
        raise DataError("The dataset has no validation record: prepare it with --validation-fraction above 0.")
    found = read_run(Path(subject), best) if is_run(Path(subject)) else None
    model = resolve_model(found.config.model if found else subject, say)
    revision = found.config.revision if found else None
    prompts = open_prompts(model, data.manifest, revision)
    dtype = found.config.dtype if found else None
    backend = open_for_eval(model, dtype, revision, found.adapter if found else None)
    say(choose_sharing(backend, config.prefix_sharing))
    base = Contender("base" if found else "model", backend, adapter=False)
    contenders = [base, Contender("tuned", backend, adapter=True)] if found else [base]
    with terminal.progress_reporter() as progress:
        result = run(contenders, base, data.validation, prompts, config, progress)
    default = found.path / f"eval{'-best' * best}.json" if found else Path(f"eval-{Path(subject).name}.json")
    return result, default
