"""`sdft report`: what is in a dataset, how a run went, what an evaluation found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdft_cli.cli.support import completion
from sdft_cli.cli.support.common import command, print_json
from sdft_cli.cli.support.options import AsJson, option
from sdft_cli.notices import say, visible
from sdft_cli.stages.report import newest_subject, read_evaluation_of, run_parts, subject_of

if TYPE_CHECKING:
    from sdft_cli.records import Dataset
    from sdft_cli.report.run.parts import Evaluation, RunParts


@command
def report(
    subject: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DATASET|RUN|EVAL]",
            help="The folder of a dataset, of a run or of `sdft demo`, or a file that `sdft eval` wrote.",
            show_default="the newest run or dataset under runs/ and data/",
            autocompletion=completion.subjects,
        ),
    ] = None,
    as_json: AsJson = False,
    html: Annotated[
        Path | None,
        option(
            help="Write a page of its own: one file, no scripts.",
            left_out="RUN/report.html for a run",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing HTML file.")] = False,
) -> None:
    """Show a dataset, a run or an evaluation.

    Of a dataset: funnel, lengths against the caps, sessions, tools, and what other caps would keep. Of a run: steps,
    held-out evaluations, the gate, evaluations and the merge; its page has the curves, samples token by token, and how
    answers changed. Of an evaluation: its tables; its page has the answers side by side.

    Example: sdft report runs/my-run
    """
    found = subject_of(subject) if subject else newest_subject()
    if found.kind == "run":
        _show_run(run_parts(found.path), found.path, html, overwrite, as_json)
    elif found.kind == "evaluation":
        _show_evaluation(read_evaluation_of(found.path), html, overwrite, as_json)
    else:
        from sdft_cli.records import read_dataset

        _show_dataset(read_dataset(found.path), html, overwrite, as_json)


def _show_run(parts: RunParts, folder: Path, html: Path | None, overwrite: bool, as_json: bool) -> None:
    """Print a run's summary, and write its page: into its folder, where an older page is replaced, or to `html`."""
    from sdft_cli.records.folders import write_text
    from sdft_cli.report import terminal
    from sdft_cli.report.evaluation import summaries
    from sdft_cli.report.run.page import render_run
    from sdft_cli.report.run.summary import run_report

    if as_json:
        evaluations = {one.name: summaries(one.document) for one in parts.evaluations}
        logs = {"metrics": parts.metrics, "heldout": parts.heldout}
        print_json({"run": parts.info, "gate": parts.gate, **logs, "evaluations": evaluations, "notes": parts.notes})
    else:
        terminal.stdout().print(run_report(parts))
    if html or not as_json:
        target = html or folder / "report.html"
        write_text(target, render_run(parts), overwrite or html is None)
        say(f"Report written to {target}")


def _show_evaluation(one: Evaluation, html: Path | None, overwrite: bool, as_json: bool) -> None:
    from sdft_cli.records.folders import write_text
    from sdft_cli.report import evaluation, terminal
    from sdft_cli.report.run.page import render_evaluation

    if html:
        write_text(html, render_evaluation(one), overwrite)
        say(f"Report written to {html}")
    if as_json:
        print_json(evaluation.summaries(one.document))
    elif not html:
        terminal.stdout().print(evaluation.report(one.document, details=True))


def _show_dataset(data: Dataset, html: Path | None, overwrite: bool, as_json: bool) -> None:
    from sdft_cli.records.folders import write_text
    from sdft_cli.report import terminal
    from sdft_cli.report.page import render_page
    from sdft_cli.report.statistics import dataset_statistics
    from sdft_cli.report.told import sentences

    if html:
        write_text(html, render_page(data), overwrite)
    if as_json:
        facts = {name: data.manifest.get(name) for name in ("coverage", "system_prompt", "unknown")}
        document = {"funnel": data.manifest["funnel"], **facts, **dataset_statistics(data).as_dict()}
        print_json(document)
    elif not html:
        terminal.stdout().print(
            terminal.statistics_report(data.manifest["funnel"], dataset_statistics(data), full=True)
        )
        for sentence in sentences(data.manifest):
            typer.echo(visible(sentence))
    if html:
        say(f"Report written to {html}: open it in a browser; next: sdft plan {data.path}")
    else:
        say(f"Next: sdft plan {data.path}; as a page: sdft report {data.path} --html report.html")
