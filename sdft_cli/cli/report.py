"""`sdft report`: what is in a dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sdft_cli.cli.support.common import command
from sdft_cli.cli.support.options import DatasetPath, option
from sdft_cli.notices import say
from sdft_cli.stages.folders import newest_dataset


@command
def report(
    dataset: DatasetPath = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every number as JSON.")] = False,
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
        say(f"Report written to {html}")
    if as_json:
        facts = {name: data.manifest.get(name) for name in ("coverage", "system_prompt", "unknown")}
        document = {"funnel": data.manifest["funnel"], **facts, **dataset_statistics(data).as_dict()}
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
    elif not html:
        terminal.stdout().print(
            terminal.statistics_report(data.manifest["funnel"], dataset_statistics(data), full=True)
        )
        for sentence in sentences(data.manifest):
            typer.echo(sentence)
