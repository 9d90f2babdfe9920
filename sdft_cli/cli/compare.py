"""`sdft compare`: the models of several evaluated runs in one table, and new skill against forgetting in one plot.

Or, of runs that go on from each other, what each of them kept of the datasets before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdft_cli.cli.support import completion
from sdft_cli.cli.support.common import command, print_json
from sdft_cli.cli.support.options import AsJson, option
from sdft_cli.notices import say


@command
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Run folders, or files that `sdft eval` wrote.",
            autocompletion=completion.evaluated_runs,
        ),
    ],
    skill: Annotated[str, typer.Option(help="What is learned, for the plot: a measure of eval.json.")] = (
        "expert_nll_per_token"
    ),
    forgetting: Annotated[str, typer.Option(help="What is forgotten, for the plot.")] = "drift_kl",
    matrix: Annotated[
        bool,
        typer.Option(
            "--matrix",
            help="RUNs were trained one after the other: the skill on each run's dataset after each run, from all "
            "eval*.json in their folders.",
        ),
    ] = False,
    html: Annotated[Path | None, option(help="Write tables and plot as one page.", left_out="no page")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing page.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare evaluated runs: SDFT against SFT, two learning rates, two checkpoints; paired, with intervals.

    Nothing is run again: every run needs `sdft eval` on the same dataset with the same settings first.

    Example: sdft compare runs/sdft runs/sft --html compare.html
    """
    if matrix:
        _show_matrix(runs, skill, html, as_json)
        return
    from sdft_cli.evaluation.compare import compare as put_together
    from sdft_cli.evaluation.compare import trade_off
    from sdft_cli.evaluation.document import read_evaluation
    from sdft_cli.records.folders import write_text
    from sdft_cli.report import comparison, evaluation, terminal

    found = put_together([read_evaluation(path) for path in runs])
    points = trade_off(found, skill, forgetting)
    if as_json:
        print_json({**evaluation.summaries(found), "trade_off": points})
    else:
        terminal.stdout().print(comparison.report(found, points, skill, forgetting))
    if html:
        write_text(html, comparison.render_page(found, points, skill, forgetting), overwrite)
        say(f"Page written to {html}: open it in a browser.")
    else:
        say(f"Next, as a page: sdft compare {' '.join(map(str, runs))} --html compare.html")


def _show_matrix(runs: list[Path], skill: str, html: Path | None, as_json: bool) -> None:
    from sdft_cli.errors import UsageError
    from sdft_cli.evaluation.matrix import forgetting_matrix, read_stage
    from sdft_cli.report import comparison, terminal

    if html:
        raise UsageError("--matrix writes no page: leave --html out, or use --json.")
    found = forgetting_matrix([read_stage(path) for path in runs], skill)
    if as_json:
        print_json(found)
    else:
        terminal.stdout().print(comparison.matrix_report(found))
    say(f"Next, side by side: sdft compare {' '.join(map(str, runs))}")
