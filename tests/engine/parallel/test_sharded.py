"""FSDP2: processes that hold a part of each layer make the run of one process that holds all of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

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


@pytest.fixture(scope="module")
def runs(launcher: Launcher, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(launcher, tiny_model, tmp_path_factory.mktemp("sharded"))


@pytest.fixture(scope="module")
def tiny_qwen(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3.5 with a vision tower, three gated delta rules, an attention, and an output head of its own."""
    from transformers import GenerationConfig, Qwen3_5Config, Qwen3_5ForConditionalGeneration

    from tests.engine.trees import LINEAR_SIZES, SIZES, VISION

    text = {**SIZES, **LINEAR_SIZES, "vocab_size": 49_152, "pad_token_id": 2}
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
        assert "Going on after step 15" in runs.said(name, 0)
        assert_same_run(runs, "whole", name)
    assert moved(runs, "whole") > 1e-3
    assert len(runs.lines("whole", "metrics.jsonl")) == STEPS


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "sft", "prefix_sharing": "none", "gradient_checkpointing": "true"},
        {"prefix_sharing": "depth_first", "segment_tokens": 64, "rollout.per_record": 2, "rehearse": "true"},
        {"teacher.kind": "ema", "optim.turns_per_step": 1, "gate.action": "warn", "gate.max_new_tokens": 4},
    ],
    ids=["sft-none", "depth_first", "ema"],
)
def test_each_way_to_run_a_step(runs: Runs, settings: dict[str, Any], request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.id
    train(runs, f"{name}-1", 1, FEW | settings)
    train(runs, f"{name}-2", 2, FEW | settings, **FSDP2)
    assert_same_run(runs, f"{name}-1", f"{name}-2")


def test_a_hybrid_with_a_vision_tower_and_its_merge(launcher: Launcher, tiny_qwen: Path, tmp_path: Path) -> None:
    from sdft_cli.run_folder import read_run
    from sdft_cli.stages.merge import run_merge

    runs = Runs(launcher, tiny_qwen, tmp_path)
    train(runs, "whole", 1, {})
    train(runs, "shards", 2, {}, **LIKE_ACCELERATE)
    assert "FSDP2: 5 layers" in runs.said("shards", 0)
    assert "Prefix sharing: depth_first" in runs.said("shards", 0)
    assert_same_run(runs, "whole", "shards")
    assert moved(runs, "whole") > 1e-3
    check = run_merge(read_run(tmp_path / "shards"), tmp_path / "merged")
    print(json.dumps(check)[:400])
    assert (tmp_path / "merged" / "merge-certificate.json").is_file()
