from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from sdft_cli.config import load_train_config
from sdft_cli.errors import UsageError
from sdft_cli.evaluation.contenders import contenders_of
from sdft_cli.run_folder import Run


def run(name: str, model: str = "o/m", objective: str = "sdft", **info: Any) -> Run:
    config = load_train_config("cpu-demo", (), {"model": model, "objective": objective})
    return Run(Path(name), info, config, Path(name) / "adapter")


def first(one: Run, *controls: Run) -> None:
    """Ask for the first model, which is not there: what is refused is refused before it is loaded."""
    next(contenders_of(one, "no/such/model", None, controls, "none", print))


def test_controls_of_another_base_or_commit_are_refused_before_anything_is_loaded() -> None:
    with pytest.raises(UsageError, match="b was trained from o/x, a from o/m"):
        first(run("a"), run("b", "o/x"))
    with pytest.raises(UsageError, match="b was trained from o/m 2222, a from o/m 1111"):
        first(run("a", base={"commit": "1111"}), run("b", base={"commit": "2222"}))


def test_two_models_of_one_name_are_refused_before_anything_is_loaded() -> None:
    with pytest.raises(UsageError, match="would be called b"):
        first(run("a"), run("x/b"), run("y/b"))
    with pytest.raises(UsageError, match="would be called tuned"):
        first(run("a"), run("tuned"))


def test_the_commit_that_was_trained_on_comes_before_the_branch() -> None:
    config = load_train_config("cpu-demo", ["revision=main"])
    assert Run(Path("r"), {"base": {"commit": "1111"}}, config, Path("a")).revision == "1111"
    for info in ({}, {"base": None}, {"base": {"config.json": "x"}}):
        assert Run(Path("r"), info, config, Path("a")).revision == "main"
