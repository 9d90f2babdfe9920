"""`sdft report`: what is in a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdft_cli.cli.support.common import command, print_json
from sdft_cli.cli.support.options import AsJson, DatasetPath, option
from sdft_cli.notices import say, visible
from sdft_cli.stages.folders import newest_dataset


@command
def report(
    dataset: DatasetPath = None,
    as_json: AsJson = False,
    html: Annotated[
        Path | None, option(help="Write a page of its own: one file, no scripts.", left_out="no page")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing HTML file.")] = False,
) -> None:
    """Show a dataset: funnel, lengths against the caps, sessions, tools, and what other caps would keep.

    Example: sdft report data/my-sessions --html report.html
    """
    from sdft_cli.records import read_dataset
    from sdft_cli.records.folders import write_text
    from sdft_cli.report import terminal
    from sdft_cli.report.page import render_page
    from sdft_cli.report.statistics import dataset_statistics
    from sdft_cli.report.told import sentences

    data = read_dataset(dataset or newest_dataset())
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
