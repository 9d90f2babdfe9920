from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

pytest.importorskip("torch")

from benchmarks.sdft_vs_sft.__main__ import FORGOTTEN, LEARNED, SHOWN, Arm, gap, mean_of_seeds, plot, study, table
from sdft_cli.config import EvalConfig
from sdft_cli.metrics import METRICS
from tests.evaluate.documents import contender

CONFIG = EvalConfig(resamples=200)
ARMS = [Arm(o, "1e-3", seed) for seed in (0, 1) for o in ("sdft", "sft")]
DOCUMENT = {
    "contenders": {
        "base": contender("base", 0.0, 9),
        "sdft-1e-3-0": contender("control", 0.3, 0),
        "sft-1e-3-0": contender("control", 0.1, 1),
        "sdft-1e-3-1": contender("control", 0.5, 2),
        "sft-1e-3-1": contender("control", 0.2, 3),
    }
}
FOUND = DOCUMENT["contenders"]


def test_seeds_are_averaged_item_by_item() -> None:
    two = [FOUND["sdft-1e-3-0"], FOUND["sdft-1e-3-1"]]
    found = mean_of_seeds(two, METRICS["expert_nll_per_token"])
    assert found[3] == pytest.approx((sum(c["items"][3]["nll"] for c in two) / 2, 10.0))
    named = mean_of_seeds(two, METRICS["tool_named_share"])
    assert named[1] is None  # no tool turn
    assert {part[0] for part in named if part} <= {0.0, 0.5, 1.0}


def test_arms_are_compared_by_their_means_and_seed_by_seed() -> None:
    result = study(DOCUMENT, ARMS, CONFIG)
    found = result["sdft - sft"]["1e-3"]["expert_nll_per_token"]
    nll = {name: sum(i["nll"] for i in c["items"]) / 240 for name, c in FOUND.items()}
    first, second = (nll[f"sdft-1e-3-{s}"] - nll[f"sft-1e-3-{s}"] for s in (0, 1))
    assert found["seeds"] == pytest.approx([first, second])
    assert found["value"] == pytest.approx((first + second) / 2)
    against_base = result["groups"]["sft 1e-3"]["expert_nll_per_token"]
    assert against_base["seeds"] == pytest.approx([nll[f"sft-1e-3-{s}"] - nll["base"] for s in (0, 1)])
    assert result["base"]["expert_nll_per_token"] == pytest.approx(nll["base"])


def test_a_group_against_itself_is_nothing() -> None:
    two = [FOUND["sdft-1e-3-0"], FOUND["sdft-1e-3-1"]]
    for key in SHOWN:
        found = gap(two, two, key, CONFIG)
        assert (found["value"], found["seeds"]) == (0.0, [0.0, 0.0]), key


def test_table_and_plot_hold_every_arm() -> None:
    result = study(DOCUMENT, ARMS, CONFIG)
    names = ["base", "sdft 1e-3", "sft 1e-3", "sdft - sft at 1e-3"]
    for shown in (LEARNED, FORGOTTEN):
        lines = table(result, shown).splitlines()
        assert [line.split("|")[1].strip() for line in lines[2:]] == names
        assert all(line.count("|") == len(shown) + 2 for line in lines)
    image = ElementTree.fromstring(plot(result))
    texts = [text.text for text in image.iter("{http://www.w3.org/2000/svg}text")]
    assert {"sdft 1e-3", "sft 1e-3"} <= set(texts)
