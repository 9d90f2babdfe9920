"""The `sdft` command."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from sdft_cli import __version__
from sdft_cli.cli.cards import cards
from sdft_cli.cli.chat import chat
from sdft_cli.cli.compare import compare
from sdft_cli.cli.demo import demo
from sdft_cli.cli.evaluate import evaluate
from sdft_cli.cli.export import export
from sdft_cli.cli.gate import gate
from sdft_cli.cli.init import init
from sdft_cli.cli.inspect import inspect
from sdft_cli.cli.merge import merge
from sdft_cli.cli.plan import doctor, plan
from sdft_cli.cli.prepare import prepare
from sdft_cli.cli.report import report
from sdft_cli.cli.run import run
from sdft_cli.cli.support.common import be_loud, exit_of
from sdft_cli.cli.support.options import Command, Group, Quiet, Verbose
from sdft_cli.cli.train import train
from sdft_cli.errors import SdftError
from sdft_cli.notices import set_loudness
from sdft_cli.threads import limit_spinning

limit_spinning()  # before any command imports torch

if "_SDFT_COMPLETE" in os.environ:  # a shell asks what a word may become: rich would only take time
    sys.modules["rich"] = None  # type: ignore[assignment]

app = typer.Typer(
    name="sdft",
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Recorded coding-agent sessions in; a self-distilled (arXiv 2601.19897), merged and evaluated model out.",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"sdft {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Turn recorded coding-agent sessions into a better open model: prepare, train, merge, eval."""
    set_loudness("normal")  # one process may run several commands
    try:
        be_loud(quiet, verbose)
    except SdftError as error:
        raise exit_of(error) from None


app.command(cls=Command)(init)
app.command(cls=Command)(run)
app.command(cls=Command)(prepare)
app.command(cls=Command)(gate)
app.command(cls=Command)(plan)
app.command(cls=Command)(doctor)
app.command(cls=Command)(train)
app.command(cls=Command)(merge)
app.command("eval", cls=Command)(evaluate)
app.command(cls=Command)(compare)
app.command(cls=Command)(chat)
app.command(cls=Command)(report)
app.command(cls=Command)(inspect)
app.command(cls=Command)(export)
app.command(cls=Command)(demo)
app.command(cls=Command)(cards)


if __name__ == "__main__":
    app()
