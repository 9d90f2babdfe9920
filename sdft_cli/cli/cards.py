"""`sdft cards`: what is known about source datasets."""

from __future__ import annotations

from typing import Annotated

import typer

from sdft_cli.cli.support import completion
from sdft_cli.cli.support.common import command, print_json
from sdft_cli.cli.support.options import AsJson
from sdft_cli.notices import say


@command
def cards(
    name: Annotated[
        str | None,
        typer.Argument(help="A dataset (owner/name).", show_default="all are listed", autocompletion=completion.cards),
    ] = None,
    as_json: AsJson = False,
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
        print_json(facts if name is None else facts[0])
    elif name is None:
        terminal.stdout().print(terminal.cards_table(facts))
    else:
        terminal.stdout().print(terminal.card_table(facts[0]))
    if name is None:
        say("Next: sdft cards NAME shows all of one; sdft prepare NAME takes it.")
    else:
        say(f"Next: {f'get it from {found[0].url}, then ' * bool(found[0].url)}sdft prepare {name}")
