"""FSDP2: processes that hold a part of each layer make the run of one process that holds all of it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from sdft_cli.config import load_train_config
from sdft_cli.engine.parallel.sharding import Sharding, asked_sharding
from sdft_cli.errors import UsageError
from tests.engine.parallel.launcher import Launcher
from tests.engine.parallel.test_run import FEW, STEPS, Runs, assert_same_run

torch = pytest.importorskip("torch")

FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
LIKE_ACCELERATE = {
    **FSDP2,
    "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_FORWARD_PREFETCH": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "ACCELERATE_MIXED_PRECISION": "no",
}
"""What `accelerate launch --use_fsdp --fsdp_version 2` sets: one process reads the files."""
ON = {"rollout.weights": "adapter"}
OF_THE_TARGET_RUN = load_train_config("qwen3.5-9b-64k").lora.target_modules


@pytest.fixture(scope="module")
def runs(launcher: Launcher, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(launcher, tiny_model, tmp_path_factory.mktemp("sharded"))


@pytest.fixture(scope="module")
def tiny_qwen(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3.5 with a vision tower, three gated delta rules, an attention, and an output head of its own."""
    from transformers import GenerationConfig, Qwen3_5Config, Qwen3_5ForConditionalGeneration

    from tests.engine.trees import LINEAR_SIZES, SIZES, VISION

    text = {**SIZES, **LINEAR_SIZES, "vocab_size": 49_152, "pad_token_id": 2, "initializer_range": 0.05}
    torch.manual_seed(0)
    config = Qwen3_5Config(text_config=text, vision_config=VISION, tie_word_embeddings=False)
    model = Qwen3_5ForConditionalGeneration(config)
    model.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=2)
    model.lm_head.weight.data.normal_(std=0.5)  # logits with some shape
    folder = tmp_path_factory.mktemp("models") / "tiny-qwen3.5"
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(smollm2 / name, folder / name)
    return folder


def train(runs: Runs, name: str, count: int, settings: dict[str, Any], **environment: str) -> None:
    answer = runs.train(name, count, ON | settings, environment=environment)
    assert answer["codes"] == [0] * count, "".join(runs.said(name, rank) for rank in range(count))


def moved(runs: Runs, name: str) -> float:
    return max(float(tensor.abs().max()) for key, tensor in runs.adapter(name).items() if "lora_B" in key)


def test_a_killed_run_in_shards_goes_on_whole_and_in_other_shards(runs: Runs) -> None:
    """20 steps in 2 shards, of which a process is killed in step 17; then in 3 shards, and whole."""
    train(runs, "whole", 1, {})
    kill = {"rank": 1, "file": str(runs.folder / "killed" / "metrics.jsonl"), "lines": 16}
    answer = runs.train("killed", 2, ON, environment=LIKE_ACCELERATE, kill=kill)
    said = runs.said("killed", 0)
    assert answer["codes"] == [1, -9], said
    assert answer["seconds"] < 60
    assert "sdft: Process 1 of 2 (counted from 0) was killed or crashed (its process " in said
    assert "FSDP2: 2 layers of 0.00 GB in shards, 0.00 GB on each of 2 processes; " in said
    assert "FSDP2 is experimental" in said
    assert "Prefix sharing: packed" in said
    for count, environment in ((3, FSDP2), (1, {})):
        name = f"resumed-{count}"
        shutil.copytree(runs.folder / "killed", runs.folder / name)
        answer = runs.run(name, count, ["--resume"], environment=environment)
        assert answer["codes"] == [0] * count, runs.said(name, 0)
        assert re.search(r"Going on after step 1[6-9]\b", runs.said(name, 0))  # the first process saved what was whole
        assert_same_run(runs, "whole", name)
    assert moved(runs, "whole") > 1e-3
    assert len(runs.lines("whole", "metrics.jsonl")) == STEPS


@pytest.mark.parametrize(
    "settings",
    [
        {
            "prefix_sharing": "none",
            "gradient_checkpointing": "true",
            "rollout.graphs": "off",  # transformers' own generate
            "optim.turns_per_step": 1,
            "rehearse": "true",
        },
        {
            "prefix_sharing": "depth_first",
            "segment_tokens": 64,
            "teacher.kind": "ema",
            "rollout.per_record": 2,
            "gate.action": "warn",
            "gate.max_new_tokens": 4,
        },
    ],
    ids=["none", "depth_first"],
)
def test_each_way_to_run_a_step(runs: Runs, settings: dict[str, Any], request: pytest.FixtureRequest) -> None:
    """Two processes with shards and without: not a bit differs. With one turn, one of them has only to gather."""
    name = request.node.callspec.id
    whole, shards = f"{name}-whole", f"{name}-shards"
    train(runs, whole, 2, FEW | settings)
    train(runs, shards, 2, FEW | settings, **FSDP2)
    assert_same_run(runs, whole, shards)
    pairs = zip(runs.lines(whole, "metrics.jsonl"), runs.lines(shards, "metrics.jsonl"), strict=True)
    assert all((a["loss"], a["grad_norm"]) == (b["loss"], b["grad_norm"]) for a, b in pairs)
    one, two = runs.adapter(whole), runs.adapter(shards)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert moved(runs, shards) > 1e-4


def test_a_hybrid_with_a_vision_tower_and_its_merge(launcher: Launcher, tiny_qwen: Path, tmp_path: Path) -> None:
    from sdft_cli.run_folder import read_run
    from sdft_cli.stages.merge import run_merge

    runs = Runs(launcher, tiny_qwen, tmp_path)
    settings = {
        "optim.max_steps": 5,
        "optim.turns_per_step": 3,
        "heldout.every": 5,
        "heldout.records": 2,
        "lora.target_modules": json.dumps(OF_THE_TARGET_RUN),
    }
    train(runs, "whole", 1, settings)
    train(runs, "shards", 2, settings, **LIKE_ACCELERATE)
    assert "FSDP2: 5 layers" in runs.said("shards", 0)  # four of the trunk, one of the tower
    assert "Prefix sharing: depth_first" in runs.said("shards", 0)
    assert_same_run(runs, "whole", "shards")
    assert moved(runs, "whole") > 1e-3
    check = run_merge(read_run(tmp_path / "shards"), tmp_path / "merged")
    assert len(check["adapted"]) == 31 - 6
    certificate = json.loads((tmp_path / "merged" / "merge-certificate.json").read_text())
    assert certificate["adapted"] == check["adapted"]
    assert not (tmp_path / "merged" / "FAILED.txt").exists()


def test_an_interrupt_in_a_pass_saves_the_run(runs: Runs) -> None:
    kill = {"rank": 1, "signal": "SIGINT", "file": str(runs.folder / "interrupted" / "metrics.jsonl"), "lines": 2}
    answer = runs.train("interrupted", 2, ON, environment=FSDP2, kill=kill)
    assert answer["codes"] == [130, 130], runs.said("interrupted", 0)
    assert "sdft: interrupted after step" in runs.said("interrupted", 0)
    done = len(runs.lines("interrupted", "metrics.jsonl"))
    assert (runs.folder / "interrupted" / "checkpoints" / f"step-{done:06d}").is_dir()


def test_passes_of_any_number_and_order_are_served(launcher: Launcher, tmp_path: Path) -> None:
    """One process goes forward and back, one forward only and in another order, one does nothing at all."""
    arguments = ["layers", str(tmp_path)]
    answer = launcher.run(3, "tests.engine.parallel.probe", arguments, tmp_path, str(tmp_path / "log"))
    assert answer["codes"] == [0] * 3, (tmp_path / "log.err0").read_text()
    found = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(3)]
    assert found[0]["difference"] == found[1]["difference"] == 0.0  # not a bit
    assert [one["whole"] for one in found] == [[], [], []]  # layers that are still whole at the end
    assert [one["most"] for one in found] == [1, 1, 0]  # layers that are whole at once while passes run
    assert found[0]["gathered"] == found[1]["gathered"] == found[2]["gathered"]
    # Four passes over three layers on the first, three on the second; those that meet are gathered once.
    assert found[0]["gathered"] <= 4 * 3 + 3


def test_what_accelerate_says_is_done_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked_sharding("float32") is None
    for name, value in LIKE_ACCELERATE.items():
        monkeypatch.setenv(name, value)
    assert asked_sharding("float32") == Sharding(None, one_reads=True)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "LlamaDecoderLayer, Other")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert asked_sharding("bfloat16") == Sharding(("LlamaDecoderLayer", "Other"), one_reads=False)
    with pytest.raises(UsageError, match="--mixed_precision is bf16, but the base of this run is float32"):
        asked_sharding("float32")


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("FSDP_VERSION", "1", "FSDP version 1 is not supported: launch with --fsdp_version 2, or without FSDP."),
        ("FSDP_OFFLOAD_PARAMS", "true", "launch without --fsdp_offload_params."),
        ("FSDP_RESHARD_AFTER_FORWARD", "false", "launch with --fsdp_reshard_after_forward true."),
        ("FSDP_AUTO_WRAP_POLICY", "SIZE_BASED_WRAP", "--fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP."),
        ("FSDP_FORWARD_PREFETCH", "true", "launch without --fsdp_forward_prefetch."),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "--set gradient_checkpointing=true."),
        ("FSDP_IGNORED_MODULES", "model.norm", "launch without --fsdp_ignored_modules."),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "launch without --use_parallelism_config."),
    ],
)
def test_what_is_not_done_is_refused_by_its_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str
) -> None:
    for key, each in (LIKE_ACCELERATE | {name: value}).items():
        monkeypatch.setenv(key, each)
    with pytest.raises(UsageError) as caught:
        asked_sharding("float32")
    assert str(caught.value).endswith(sentence)
    assert name == "FSDP_VERSION" or str(caught.value).startswith(f"{name} is {value.lower()}, but ")


@pytest.mark.parametrize(
    ("count", "settings", "environment", "sentence"),
    [
        (2, {}, {"FSDP_VERSION": "1"}, "FSDP version 1 is not supported"),
        (2, {"rollout.weights": "merged"}, {}, "rollout.weights is merged, but the base is in shards"),
        (2, {}, {"FSDP_TRANSFORMER_CLS_TO_WRAP": "Linear"}, "Linear is no layer of llama (LlamaDecoderLayer): launch"),
        (1, {}, {}, "FSDP2 shards a model over several processes, and this is one"),
    ],
)
def test_what_cannot_be_sharded_is_refused_in_a_sentence(
    runs: Runs, count: int, settings: dict[str, Any], environment: dict[str, str], sentence: str
) -> None:
    answer = runs.train("refused", count, ON | settings, environment=FSDP2 | environment)
    assert answer["codes"] == [2] * count, runs.said("refused", 0)
    assert runs.said("refused", 0).splitlines()[-1].startswith(f"sdft: {sentence}")
    assert not (runs.folder / "refused").exists()
