"""What is known about source datasets: `data_cards/<owner>--<name>.yaml`, one card each.

A card states only what its `source` supports; a fact that is not known is null.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sdft_cli.errors import UsageError
from sdft_cli.resources import resource, resource_text
from sdft_cli.texts import parse_yaml
from sdft_cli.traces.readers import READERS

MIXED = "mixed"


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CardDefaults(_Facts):
    """Settings of `sdft prepare` that suit a dataset; flags override them."""

    max_seq_tokens: int | None = Field(default=None, gt=0)
    max_prompt_tokens: int | None = Field(default=None, gt=0)
    max_rollout_tokens: int | None = Field(default=None, gt=0)
    validation_fraction: float | None = Field(default=None, ge=0, lt=1)
    tools: Literal["observed", "all"] | None = None
    teacher_template: str | None = None


class DataCard(_Facts):
    """One dataset: where it is, which reader takes it, and what may be done with it."""

    dataset: str
    format: str = Field(description="a reader, or `mixed`: each file by its first lines")
    description: str
    license: str | None = Field(description="the Hub's licence identifier; null: read the dataset's own card")
    source: str = Field(min_length=1, description="where these facts come from")
    url: str | None = Field(None, description="where to get the data if it is not on the Hub")
    defaults: CardDefaults = Field(default_factory=CardDefaults)
    expected: dict[str, int] = Field(default_factory=dict, description="published counts, by what they count")

    @field_validator("format")
    @classmethod
    def _is_a_reader(cls, value: str) -> str:
        known = [*(reader.name for reader in READERS), MIXED]
        if value not in known:
            raise ValueError(f"format {value!r} is no reader ({', '.join(known)})")
        return value

    @property
    def reader(self) -> str | None:
        """The reader for files whose first lines show no format; None where the card cannot say."""
        return None if self.format == MIXED else self.format


def parse_card(text: str, dataset: str) -> DataCard:
    """Return the card that a YAML text holds.

    Raises:
        UsageError: it is no YAML object, a key is unknown or missing, or it names another dataset.
    """
    try:
        document = parse_yaml(text)
    except ValueError as error:
        raise UsageError(f"data_cards: the card of {dataset} is no YAML ({error}): correct the file.") from error
    try:
        card = DataCard.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"data_cards: the card of {dataset}: {where}: {first['msg']}: correct the file.") from error
    if card.dataset != dataset:
        raise UsageError(f"data_cards: the card of {dataset} names {card.dataset}: correct the file.")
    return card


def data_card_names() -> list[str]:
    """Return the ids of the datasets that have a card."""
    names = (entry.name for entry in resource("data_cards").iterdir())
    return sorted(name.removesuffix(".yaml").replace("--", "/", 1) for name in names if name.endswith(".yaml"))


def load_data_card(dataset: str) -> DataCard | None:
    """Return the card of a dataset, or None if there is none; raises as `parse_card`."""
    if dataset not in data_card_names():
        return None
    return parse_card(resource_text("data_cards", f"{dataset.replace('/', '--')}.yaml"), dataset)
