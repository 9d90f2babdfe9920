"""What an unknown name may mean."""

from __future__ import annotations

import pytest

from sdft_cli.choices import DIVERGENCES
from sdft_cli.errors import did_you_mean, nearest

RUNS = ["runs/mine-cpu-demo", "runs/mine-cpu-demo-sft", "runs/other"]


@pytest.mark.parametrize(
    ("name", "names", "found"),
    [
        ("reverse-kl", DIVERGENCES, ["reverse_kl"]),
        ("REVERSE_KL", DIVERGENCES, ["reverse_kl"]),
        ("kl", DIVERGENCES, []),  # too short to say which
        ("forward", DIVERGENCES, ["forward_kl"]),
        ("runs/mine-cpu-dmeo", RUNS, ["runs/mine-cpu-demo", "runs/mine-cpu-demo-sft"]),
        ("cpu-demo", RUNS, ["runs/mine-cpu-demo", "runs/mine-cpu-demo-sft"]),
        ("zzz", RUNS, []),
        ("zzz", [], []),
    ],
)
def test_the_nearest_names_come_first(name: str, names: list[str], found: list[str]) -> None:
    assert nearest(name, names) == found


def test_the_end_of_a_sentence_says_what_to_write_instead() -> None:
    assert did_you_mean("jds", DIVERGENCES) == "did you mean jsd?"
    assert did_you_mean("zzz", ["a", "b"]) == "choose of a, b."
    assert did_you_mean("zzz", ["a", "b"], "check the path.") == "check the path."
    assert did_you_mean("mine", ["mine-1", "mine-2", "mine-3", "mine-4"]) == "did you mean mine-1 or mine-2 or mine-3?"
