"""What is known about source datasets: `data_cards/<owner>--<name>.yaml`."""

from __future__ import annotations

from typing import Any

import yaml

from sdft_cli.errors import UsageError
from sdft_cli.resources import resource, resource_text


def data_card_names() -> list[str]:
    """Return the ids of the datasets that have a card."""
    names = (entry.name for entry in resource("data_cards").iterdir())
    return sorted(name.removesuffix(".yaml").replace("--", "/", 1) for name in names if name.endswith(".yaml"))


def load_data_card(dataset: str) -> dict[str, Any] | None:
    """Return the card of a Hub dataset, or None if there is none.

    Raises:
        UsageError: the card does not name the dataset that its file name names.
    """
    if dataset not in data_card_names():
        return None
    card: dict[str, Any] = yaml.safe_load(resource_text("data_cards", f"{dataset.replace('/', '--')}.yaml"))
    if card.get("dataset") != dataset:
        raise UsageError(f"data_cards: the card of {dataset} names {card.get('dataset')}: correct the file.")
    return card
