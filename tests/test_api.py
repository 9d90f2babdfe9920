"""The Python API: the names of the commands, their settings, what comes back, and what is refused with which words."""

from __future__ import annotations

import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
import typer

import sdft_cli
from sdft_cli import api
from sdft_cli.cli.main import app
from sdft_cli.cli.support.options import _Key
from sdft_cli.config import EvalConfig, PrepareConfig, TrainConfig, fields_of
from sdft_cli.errors import DataError, SdftError, UsageError
from tests.datasets import example_dataset

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_importing_the_package_loads_nothing() -> None:
    code = (
        "import sys\nbefore = set(sys.modules)\nimport sdft_cli\n"
        "assert 'prepare' in dir(sdft_cli)\n"
        "print(sorted(m for m in set(sys.modules) - before if m.startswith('sdft_cli.')))\n"
        "from sdft_cli import prepare, train, merge, evaluate, load_dataset\n"
        "heavy = ('torch', 'polars', 'pydantic', 'transformers', 'datasets', 'numpy', 'rich')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]


def test_the_package_hands_on_what_it_names() -> None:
    for name in sdft_cli.__all__:
        found = getattr(sdft_cli, name)
        assert name == "__version__" or found is getattr(api, name)
        assert name == "__version__" or found.__doc__
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        sdft_cli.trian  # noqa: B018


@pytest.mark.parametrize(
    ("typed", "kind", "own"),
    [(api.PrepareSettings, PrepareConfig, {"source"}), (api.EvalSettings, EvalConfig, set())],
)
def test_keywords_are_the_settings(typed: Any, kind: Any, own: set[str]) -> None:
    assert set(typed.__annotations__) == set(fields_of(kind)) - own


def test_keywords_of_training_are_the_options_of_the_command() -> None:
    given = {p.name: p.show_default for p in COMMANDS["train"].params if isinstance(p.show_default, _Key)}
    of_options = {name: key.partition(".")[2] for name, key in given.items()}
    assert {name: api.SETTING_OF.get(name, name) for name in api.TrainOptions.__annotations__} == of_options
    assert set(of_options.values()) <= set(fields_of(TrainConfig))


@pytest.mark.parametrize("name", ["prepare", "train", "merge", "evaluate", "load_dataset"])
def test_every_argument_is_typed_and_described(name: str) -> None:
    function = getattr(api, name)
    hints = function.__annotations__
    described = function.__doc__.split("Args:")[1]
    for argument in hints.keys() - {"return"}:
        assert f"        {argument}: " in described
    assert "Raises:" in described
    assert hints["return"] != "Any"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda d: sdft_cli.prepare("s", max_seq_token=3), "did you mean max_seq_tokens or"),
        (lambda d: sdft_cli.prepare("s", overwite=True), "overwite is no argument: did you mean overwrite?"),
        (lambda d: sdft_cli.train(d, lora_rnk=3), "did you mean lora.rank?"),
        (lambda d: sdft_cli.train(d, lr=3, profile="cpu-demo"), "did you mean optim.learning_rate?"),
        (lambda d: sdft_cli.train(d, max_step=3), "max_step is no argument: did you mean max_steps?"),
        (lambda d: sdft_cli.train(d, settings={"optim.max_step": 3}), "did you mean optim.max_steps?"),
        (lambda d: sdft_cli.train(d, settings={"optim": {"max_step": 3}}), "did you mean optim.max_steps?"),
        (lambda d: sdft_cli.train(d, profile="cpu-demos"), "cpu-demo"),
        (lambda d: sdft_cli.train(d, resume=True, out="nowhere"), "nowhere is no run"),
        (lambda d: sdft_cli.evaluate("m/m", d, limits=3), "did you mean limit?"),
        (lambda d: sdft_cli.evaluate("m/m", d, control=()), "did you mean controls?"),
        (lambda d: sdft_cli.merge("nowhere"), "nowhere"),
        (lambda d: sdft_cli.merge(d.path, dtype="float16"), "use bfloat16 or float32"),
        (lambda d: sdft_cli.load_dataset("nowhere"), "There is no dataset nowhere"),
        (lambda d: sdft_cli.load_dataset(), "No dataset under data/"),
        (lambda d: sdft_cli.evaluate(), "No run under runs/"),
    ],
)
def test_what_is_refused_names_what_to_write(call: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        call(example_dataset(tmp_path, 3))
    assert words in str(caught.value)
    assert isinstance(caught.value, SdftError)


def test_a_dataset_and_its_folder_are_the_same(tmp_path: Path) -> None:
    data = example_dataset(tmp_path, 3)
    assert sdft_cli.load_dataset(str(data.path)) == data
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(DataError):
        sdft_cli.load_dataset(tmp_path / "elsewhere")


def test_unpacked_settings_are_known_to_type_checkers() -> None:
    assert typing.get_type_hints(api.TrainOptions)["max_steps"] is int
