from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sdft_cli.cli.gate import how_to_take
from tests.engine.prepared import prepared

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_its_help_has_an_example(sdft: Run) -> None:
    done = sdft("gate", "--help")
    assert done.returncode == 0
    assert "Example: sdft gate" in done.stdout


@pytest.mark.slow
def test_a_model_that_learns_nothing_from_a_reference_is_exit_code_4(
    sdft: Run, tmp_path: Path, tiny_model: Path
) -> None:
    prepared(tiny_model, tmp_path, 8, 0.4)  # tmp_path/data
    common = ("gate", "data", "--profile", "cpu-demo", "--model", tiny_model, "--set", "gate.max_new_tokens=4")
    done = sdft(*common, "--records", 6, "--out", "gate.json", "--json")
    assert done.returncode == 4, done.stderr
    assert "sdft: The teacher-lift gate fails: on 6 train records the reference does not lift" in done.stderr
    assert "Traceback" not in done.stderr
    document = json.loads((tmp_path / "gate.json").read_text())
    assert json.loads(done.stdout) == document
    assert document["passed"] is False
    assert len(document["items"]) == 6


def test_wordings_and_divergences_are_ranked(sdft: Run, tmp_path: Path, tiny_model: Path) -> None:
    prepared(tiny_model, tmp_path, 12, 0.4)
    settings = ("gate.max_new_tokens=4", "gate.first_token=0", "gate.copied=0", "max_prompt_tokens=150")
    common = ("gate", "data", "--profile", "cpu-demo", "--model", tiny_model, "--records", 6)
    common = (*common, *(part for one in settings for part in ("--set", one)))
    (tmp_path / "mine.txt").write_text("[assistant]\n{reference}\n[user]\nOnce more.\n")
    wordings = ("--templates", "again, mine.txt", "--divergences", "forward_kl,jsd", "--out", "ranking.json")
    done = sdft(*common, *wordings)
    assert done.returncode in (0, 4), done.stderr  # a random model is taught nothing by any wording
    assert "Traceback" not in done.stderr
    found = json.loads((tmp_path / "ranking.json").read_text())["ranking"]
    pairs = {(one["template"], one["divergence"]) for one in found}
    assert pairs == {(w, d) for w in ("again", "mine") for d in ("forward_kl", "jsd")}
    for one in found:
        assert -1 <= one["alignment"]["value"] <= 1
        assert one["template"] in done.stdout
    assert "with the wording again" in done.stderr  # four turns of the expert's make some prompts too long
    assert "records are over max_prompt_tokens (150)" in done.stderr


def test_the_best_wording_is_named_as_it_was_given() -> None:
    """A file of one's own by its path, also where it has the name of one that ships."""
    assert how_to_take("mine", ["again", "texts/mine.txt"]) == "prepare with --teacher-template texts/mine.txt"
    assert how_to_take("again", ["./again.txt", "repeat"]) == "prepare with --teacher-template ./again.txt"
    assert how_to_take("again", ["own_turn", "again"]) == "prepare with --teacher-template again"
    assert how_to_take("mine", []) == "keep the dataset's wording"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--templates", "again,again"), "has an empty name or one twice"),
        (("--templates", ""), "has an empty name or one twice"),
        (("--divergences", "jsd,,"), "has an empty name or one twice"),
        (("--divergences", "total"), "total is no divergence: choose of reverse_kl, "),
        (("--templates", "again,a/again.txt"), "Two wordings are called again: rename a file"),
        (("--templates", "nothing"), "nothing"),
        (("--divergences", "jsd", "--shuffle-references"), "--shuffle-references checks one wording"),
    ],
)
def test_what_cannot_be_ranked_is_one_sentence(
    sdft: Run, tmp_path: Path, tiny_model: Path, options: tuple[str, ...], said: str
) -> None:
    prepared(tiny_model, tmp_path, 4, 0.4)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "again.txt").write_text("{reference}\nAgain.")
    done = sdft("gate", "data", "--profile", "cpu-demo", "--model", tiny_model, *options)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
