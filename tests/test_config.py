from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from docs import make_settings
from sdft_cli.config import (
    MODELS,
    EvalConfig,
    PrepareConfig,
    TrainConfig,
    build,
    changed_for_memory,
    fields_of,
    load_train_config,
    nearest_keys,
    resumed_config,
    sections_of,
    stored_config,
)
from sdft_cli.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent
PROFILES = ROOT / "templates" / "profiles"


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
        (["optim.lr=1"], r"optim\.lr is no setting: did you mean optim\.learning_rate"),
        (["optim.learning_rate=-1"], r"optim\.learning_rate: Input should be greater than 0"),
        (["distill.lambda_on_policy=2"], r"less than or equal to 1"),
        (["lora.target_modules=[]"], r"lora\.target_modules"),
        (["nonsense"], r"is not key=value"),
        (["rollout.max_new_tokens=2000"], r"together are above max_seq_tokens \(8192\)"),
        (["seed.x=1"], r"seed is a value"),
        (["optim.position_decay=0.6", "optim.group_by=session"], r"position_decay draws turns of different sessions"),
        (["teacher.start=200", "optim.max_steps=200"], r"teacher\.start \(200\) leaves no step of self-distillation"),
    ],
)
def test_wrong_values_are_one_sentence_that_names_them(overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        load_train_config("cpu-demo", overrides)
    assert "\n" not in str(error.value)


def test_profiles_can_be_files_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown: there are cpu-demo, qwen3\.5-9b-64k, recommended-\S+, or name"):
        load_train_config("nope")
    for name, meant in {"cpu_demo": "cpu-demo", "qwen3.5-9b": "qwen3.5-9b-64k", "demo": "cpu-demo"}.items():
        with pytest.raises(UsageError, match=f"Profile {name} is unknown: did you mean {meant}?"):
            load_train_config(name)
    with pytest.raises(UsageError, match=r"cannot be read \(no such file"):
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


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("optim.lr", ["optim.learning_rate"]),
        ("lr", ["optim.learning_rate"]),
        ("learning_rate", ["optim.learning_rate"]),
        ("optm.learning_rate", ["optim.learning_rate"]),
        ("optim.learnign_rate", ["optim.learning_rate"]),
        ("optim.batch_size", ["optim.turns_per_step"]),
        ("lora.r", ["lora.rank"]),
        ("lora_alpha", ["lora.alpha"]),
        ("rollout.temp", ["rollout.temperature"]),
        ("rollout.max_tok", ["rollout.max_new_tokens", "rollout.max_tokens_per_pass"]),
        ("every", ["checkpoint.every", "heldout.every"]),
        ("gradient_checkpoint", ["gradient_checkpointing"]),
        ("wd", ["optim.weight_decay"]),
        ("foo.bar", []),
        ("a(b[", []),
    ],
)
def test_an_unknown_key_names_the_nearest_ones(key: str, meant: list[str]) -> None:
    assert nearest_keys(key, TrainConfig) == meant
    with pytest.raises(UsageError) as error:
        load_train_config("cpu-demo", [f"{key}=1"])
    assert str(error.value).startswith(f"{key} is no setting")
    assert all(one in str(error.value) for one in meant)
    assert "\n" not in str(error.value)


def test_unknown_keys_of_a_file_and_of_other_stages_name_the_nearest_ones_too(tmp_path: Path) -> None:
    profile = yaml.safe_load((PROFILES / "cpu-demo.yaml").read_text())
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**profile, "optm": profile["optim"]} | {"optim": {"lr": 1}}))
    with pytest.raises(UsageError, match=r"^optim\.lr is no setting: did you mean optim\.learning_rate\?$"):
        load_train_config(str(path))
    del profile["optim"]
    path.write_text(yaml.safe_dump({**profile, "optimizer": {"max_steps": 3}}))  # not that optim is missing
    with pytest.raises(UsageError, match=r"^optimizer\.max_steps is no setting: did you mean optim\.max_steps\?$"):
        load_train_config(str(path))
    with pytest.raises(UsageError, match=r"^split is no setting: did you mean split_by\?$"):
        build(PrepareConfig, {"source": "x", "split": "project"})


def test_sections_and_values_are_not_taken_for_each_other() -> None:
    with pytest.raises(UsageError, match=r"^gate is a section: name one of its values, as in gate\.action=VALUE\.$"):
        load_train_config("cpu-demo", ["gate=off"])
    with pytest.raises(UsageError, match=r"write optim\.learning_rate=VALUE\.$"):
        load_train_config("cpu-demo", ["optim.learning_rate.x=1"])


def test_an_unknown_key_is_exit_code_2_and_one_line(sdft: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    for name in ("train", "gate", "plan"):
        done = sdft(name, "--set", "optim.lr=1e-4")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "sdft: optim.lr is no setting: did you mean optim.learning_rate?\n"


@pytest.mark.parametrize(("device", "needed"), [("cuda", 70.0), ("any", None), ("cpu", None)])
def test_a_removed_setting_is_dropped_from_stored_configurations_and_refused_elsewhere(
    device: str, needed: float | None
) -> None:
    now = load_train_config("qwen3.5-9b-64k")
    stored = {**now.model_dump(mode="json"), "device": device}
    assert stored_config(stored) == now.model_copy(update={"min_gpu_gb": needed})
    assert resumed_config(stored, ["stop.kl_rising=stop"], {}).stop.kl_rising == "stop"
    with pytest.raises(UsageError, match=r"^device is no setting any more: leave it out; min_gpu_gb says"):
        load_train_config("qwen3.5-9b-64k", [f"device={device}"])
    with pytest.raises(UsageError, match=r"^devices is no setting"):
        stored_config({**stored, "devices": 1})


def test_a_run_goes_on_with_less_memory_and_says_what_changed() -> None:
    stored = load_train_config("qwen3.5-9b-64k").model_dump(mode="json")
    lower = ["segment_tokens=1024", "optim.max_tokens_per_pass=16384", "rollout.weights=adapter"]
    now = resumed_config(stored, [*lower, "min_gpu_gb=40"], {})
    assert (now.segment_tokens, now.optim.max_tokens_per_pass, now.rollout.weights) == (1024, 16384, "adapter")
    assert changed_for_memory(stored, now) == ["optim.max_tokens_per_pass", "segment_tokens", "rollout.weights"]
    assert changed_for_memory(stored, resumed_config(stored, ["min_gpu_gb=40", "heldout.every=7"], {})) == []
    with pytest.raises(UsageError, match="would make it another run"):
        resumed_config(stored, ["max_prompt_tokens=1024"], {})


@pytest.mark.parametrize(
    ("settings", "answers"),
    [
        (["distill.lambda_on_policy=1"], (True, False, 8)),
        (["distill.lambda_on_policy=0.5"], (True, True, 30)),
        (["distill.lambda_on_policy=0"], (False, True, 30)),
        (["distill.lambda_on_policy=0", "distill.lambda_start=0.1"], (True, True, 30)),
        (["distill.lambda_on_policy=1", "teacher.start=3"], (True, True, 30)),
        (["objective=sft"], (False, True, 30)),
    ],
)
def test_whose_answers_a_run_trains_on(settings: list[str], answers: tuple[bool, bool, int]) -> None:
    """And the longest of a record whose expert's turn has 30 tokens, with a cap of 8."""
    found = load_train_config("cpu-demo", ["rollout.max_new_tokens=8", *settings])
    assert (found.samples, found.trains_on_references, found.longest_answer(30)) == answers


@pytest.mark.parametrize("kind", MODELS.values())
def test_every_setting_is_described(kind: type[BaseModel]) -> None:
    for key, field in fields_of(kind).items():
        text = field.description or ""
        assert len(text.split()) >= 2, key
        assert not text.endswith("."), key
        if field.default is None:
            assert "; null: " in text, key
    for section in sections_of(kind).values():
        assert section.__doc__


def test_every_setting_is_read_somewhere() -> None:
    """By its name, as an attribute or in quotes; the rules of `stop` as arguments: one nobody reads does nothing."""
    code = "".join(path.read_text() for path in (ROOT / "sdft_cli").rglob("*.py") if path.name != "config.py")
    rules = (ROOT / "sdft_cli" / "engine" / "train" / "stop_rules.py").read_text()
    read = {*re.findall(r"[.\"]([a-z_0-9]+)\b", code), *re.findall(r"([a-z_]+)=", rules)}
    assert {key.rpartition(".")[2] for kind in MODELS.values() for key in fields_of(kind)} <= read


def test_the_page_of_all_settings_is_not_stale() -> None:
    page = make_settings.PAGE.read_text(encoding="utf-8")
    assert page == make_settings.settings_page(), "docs/settings.md is stale: run `make pages`"
    for line in (
        "| `optim.max_steps` | integer > 0 | `600` | `30` |  | `150` | optimiser steps |",
        "| `lora.dropout` | number >= 0, < 1 | `0` |  |  |  | on the adapter's input; 0 keeps student "
        "log-probabilities deterministic |",
        "| `split_by` | session, project | `session` | what is held out whole: sessions (with their copies), or all "
        "sessions of a project |",
    ):
        assert line in page.splitlines()
    for kind in MODELS.values():
        assert all(f"\n| `{key}` | " in page for key in fields_of(kind))
