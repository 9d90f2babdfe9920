from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from sdft_cli.errors import DataError, UsageError
from sdft_cli.stages.prepare import card_defaults
from sdft_cli.traces.data_cards import data_card_names, load_data_card, parse_card
from sdft_cli.traces.readers import READERS
from sdft_cli.traces.source import read_source, resolve_source

Run = Callable[..., subprocess.CompletedProcess[str]]
CARD = "dataset: me/it\nformat: pi\ndescription: d\nlicense: null\nsource: s\n"


def test_every_shipped_card_is_valid_and_says_where_its_facts_come_from() -> None:
    names = data_card_names()
    assert {"armand0e/claude-fable-5-claude-code", "badlogicgames/pi-mono", "idanshen/Self-Distillation"} <= set(names)
    assert len(names) >= 5
    for name in names:
        card = load_data_card(name)
        assert card is not None
        assert card.dataset == name
        assert card.source
        assert card.description.endswith(".")
    assert load_data_card("someone/else") is None


def test_the_card_of_the_target_run_states_its_caps() -> None:
    card = load_data_card("armand0e/claude-fable-5-claude-code")
    assert card is not None
    assert card.defaults.model_dump(exclude_none=True) == {
        "max_seq_tokens": 65_536,
        "max_prompt_tokens": 57_344,
        "max_rollout_tokens": 8_192,
    }
    assert card.license is None
    assert card.reader == "claude-code"


@pytest.mark.parametrize("reader", [*(reader.name for reader in READERS), "mixed"])
def test_a_card_may_name_any_reader(reader: str) -> None:
    card = parse_card(CARD.replace("pi", reader), "me/it")
    assert card.reader == (None if reader == "mixed" else reader)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CARD + "licence: mit\n", "the card of me/it: licence: Extra inputs are not permitted: correct the file."),
        (CARD.replace("format: pi", "format: word"), "format: Value error, format 'word' is no reader"),
        (CARD.replace("license: null\n", ""), "license: Field required"),
        (CARD.replace("license: null", "license: [mit]"), "license: Input should be a valid string"),
        (CARD.replace("source: s", "source: ''"), "source: String should have at least 1 character"),
        (CARD + "defaults: {seed: 1}\n", "defaults.seed: Extra inputs are not permitted"),
        (CARD + "defaults: {max_seq_tokens: 0}\n", "defaults.max_seq_tokens: Input should be greater than 0"),
        (CARD.replace("me/it", "you/it"), "the card of me/it names you/it: correct the file."),
        ("a: [", "the card of me/it is no YAML (line 1: "),
        ("- a", "Input should be a valid dictionary"),
    ],
)
def test_a_card_that_is_wrong_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_card(text, "me/it")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_cards_format_decides_where_first_lines_tell_nothing(tmp_path: Path) -> None:
    turns = json.dumps([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    pl.DataFrame({"messages": [*["withdrawn"] * 50, turns]}).write_parquet(tmp_path / "rows.parquet")
    source = resolve_source(str(tmp_path))
    with pytest.raises(DataError, match="No session"):
        read_source(source)
    found = read_source(replace(source, format="messages"))
    assert [m.content for m in found.sessions[0].messages] == ["a", "b"]
    assert found.report.lines == {"broken": 50, "conversation": 1}


def test_cards_lists_them_and_shows_one(sdft: Run) -> None:
    listed = sdft("cards", "--json")
    assert listed.returncode == 0
    assert [card["dataset"] for card in json.loads(listed.stdout)] == data_card_names()
    table = sdft("cards")
    assert all(name in table.stdout for name in data_card_names())
    one = sdft("cards", "badlogicgames/pi-mono")
    assert "not known here: read the dataset's own card" in one.stdout
    assert json.loads(sdft("cards", "badlogicgames/pi-mono", "--json").stdout)["license"] is None
    unknown = sdft("cards", "no/card")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr.startswith("sdft: There is no card of no/card")


def test_prepare_takes_a_cards_defaults_but_not_for_a_local_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "armand0e/claude-fable-5-claude-code"
    stated = {"max_seq_tokens": 65_536, "max_prompt_tokens": 57_344, "max_rollout_tokens": 8_192}
    assert card_defaults(name) == stated
    assert card_defaults("no/card") == {}
    (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert card_defaults(name) == {}


def test_prepare_says_where_a_dataset_off_the_hub_is(sdft: Run) -> None:
    done = sdft("prepare", "idanshen/Self-Distillation")
    assert done.returncode == 2
    assert done.stderr == (
        "sdft: idanshen/Self-Distillation is not on the Hub: "
        "get it from https://github.com/idanshen/Self-Distillation, then name the folder.\n"
    )
