"""`sdft cards`: what is known about source datasets."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from sdft_cli.cli.support.common import command


@command
def cards(
    name: Annotated[str | None, typer.Argument(help="A dataset (owner/name).", show_default="all are listed")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the data cards: datasets that `sdft prepare` knows, with their format, licence and defaults.

    Example: sdft cards armand0e/claude-fable-5-claude-code
    """
    from sdft_cli.errors import UsageError, did_you_mean
    from sdft_cli.report import terminal
    from sdft_cli.traces.data_cards import data_card_names, load_data_card

    names = data_card_names()
    if name is not None and name not in names:
        otherwise = "`sdft cards` lists them; a dataset without a card works too."
        raise UsageError(f"There is no card of {name}: {did_you_mean(name, names, otherwise)}")
    found = [card for n in names if name in (None, n) and (card := load_data_card(n)) is not None]
    facts = [card.model_dump(mode="json", exclude_none=not as_json) for card in found]
    if as_json:
        typer.echo(json.dumps(facts if name is None else facts[0], indent=2))
    elif name is None:
        terminal.stdout().print(terminal.cards_table(facts))
    else:
        terminal.stdout().print(terminal.card_table(facts[0]))
