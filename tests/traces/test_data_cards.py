from __future__ import annotations

from sdft_cli.traces.data_cards import data_card_names, load_data_card


def test_every_card_names_its_dataset_and_says_what_prepare_reads() -> None:
    assert "armand0e/claude-fable-5-claude-code" in data_card_names()
    for name in data_card_names():
        card = load_data_card(name)
        assert card is not None
        assert {"dataset", "format", "license", "description"} <= set(card)
    assert load_data_card("someone/else") is None
