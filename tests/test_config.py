from __future__ import annotations

from pathlib import Path

import pytest

from sdft_cli.config import EvalConfig, PrepareConfig, build, load_train_config
from sdft_cli.errors import UsageError


def test_flags_override_settings_which_override_the_profile() -> None:
    config = load_train_config(
        "cpu-demo", ["optim.learning_rate=1e-4", "lora.rank=8"], {"optim.max_steps": 7, "lora.rank": 4, "seed": None}
    )
    assert config.optim.learning_rate == 1e-4
    assert config.optim.max_steps == 7
    assert config.lora.rank == 4
    assert config.seed == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.lr=1"], r"optim\.lr: Extra inputs are not permitted"),
        (["optim.learning_rate=-1"], r"optim\.learning_rate: Input should be greater than 0"),
        (["distill.lambda_on_policy=2"], r"less than or equal to 1"),
        (["lora.target_modules=[]"], r"lora\.target_modules"),
        (["nonsense"], r"is not key=value"),
        (["rollout.max_new_tokens=2000"], r"together are above max_seq_tokens \(8192\)"),
        (["seed.x=1"], r"seed is a value"),
    ],
)
def test_wrong_values_are_one_sentence_that_names_them(overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        load_train_config("cpu-demo", overrides)
    assert "\n" not in str(error.value)


def test_profiles_can_be_files_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"use one of cpu-demo, qwen3\.5-9b-64k"):
        load_train_config("nope")
    with pytest.raises(UsageError, match="does not exist"):
        load_train_config(str(tmp_path / "x.yaml"))
    (tmp_path / "x.yaml").write_text("a: [")
    with pytest.raises(UsageError, match="not valid YAML"):
        load_train_config(str(tmp_path / "x.yaml"))
    (tmp_path / "x.yaml").write_text("- 1")
    with pytest.raises(UsageError, match="not a YAML mapping"):
        load_train_config(str(tmp_path / "x.yaml"))


def test_caps_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(UsageError, match=r"max_prompt_tokens \(57344\) is above max_seq_tokens \(8192\)"):
        build(PrepareConfig, {"source": "x", "max_seq_tokens": 8192})
    with pytest.raises(UsageError, match="limit"):
        build(EvalConfig, {"limit": 0})
