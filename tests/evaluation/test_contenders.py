from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from sdft_cli.config import load_train_config
from sdft_cli.errors import UsageError
from sdft_cli.evaluation.contenders import contenders_of
from sdft_cli.run_folder import Run, read_run
from tests.merging.conftest import make_run


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


def test_a_merge_in_float32_runs_in_float32(tmp_path: Path, tiny_model: Path) -> None:
    """Beside a run in bfloat16, as which it would be another model; one in bfloat16 runs as the run does."""
    import torch

    folder = make_run(tmp_path / "r", tiny_model, overrides=["dtype=bfloat16"])
    one, expected = read_run(folder), {"base": torch.bfloat16, "tuned": torch.bfloat16, "merged": torch.bfloat16}
    for exact in (False, True):
        models = contenders_of(one, str(tiny_model), tiny_model, [], "none", lambda text: None, exact)
        found = {model.name: model.student.backend.base.dtype for model in models}
        assert found == (expected | {"merged": torch.float32} if exact else expected)


def test_the_commit_that_was_trained_on_comes_before_the_branch() -> None:
    config = load_train_config("cpu-demo", ["revision=main"])
    assert Run(Path("r"), {"base": {"commit": "1111"}}, config, Path("a")).revision == "1111"
    for info in ({}, {"base": None}, {"base": {"config.json": "x"}}):
        assert Run(Path("r"), info, config, Path("a")).revision == "main"
