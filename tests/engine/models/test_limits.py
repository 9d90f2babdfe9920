"""What is refused before a weight is loaded: positions, words without an embedding."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.engine.models.limits import check_ends, check_limits, check_words, longest_sequence, positions_of  # noqa: E402
from sdft_cli.errors import UsageError  # noqa: E402
from sdft_cli.prompts.chat import ChatPrompts, load_tokenizer  # noqa: E402
from sdft_cli.prompts.teacher import load_teacher_template  # noqa: E402
from sdft_cli.records import Dataset  # noqa: E402
from tests.engine.models.families import make_config, make_qwen_vl  # noqa: E402


@pytest.mark.parametrize(
    ("family", "settings", "positions"),
    [
        ("llama", {}, 128),
        ("opt", {}, 128),
        ("gpt2", {}, 128),
        ("gpt_neox", {}, 128),
        ("falcon", {}, 128),
        ("falcon", {"alibi": True, "new_decoder_architecture": False}, None),
        ("mamba", {"max_position_embeddings": ...}, None),
        ("bloom", {"max_position_embeddings": ...}, None),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}, 512),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, 256),
        (
            "qwen3",
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "rope_theta": 1e4,
                    "original_max_position_embeddings": 128,
                }
            },
            512,
        ),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "factor": 32.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "rope_theta": 1e4,
                    "original_max_position_embeddings": 64,
                }
            },
            128,
        ),
    ],
)
def test_how_far_positions_reach(family: str, settings: dict[str, Any], positions: int | None) -> None:
    assert positions_of(make_config(family, **settings)) == positions


def test_positions_of_a_multimodal_model_are_those_of_its_text() -> None:
    assert positions_of(make_qwen_vl("qwen2_5_vl").config.get_text_config()) == 128


def test_records_at_and_over_the_limit(tiny_data: Dataset, tiny_model: Path, tmp_path: Path) -> None:
    rows = [record.row for record in tiny_data.train]
    longest = max(r.teacher_prompt_tokens + max(r.reference_tokens, 40) for r in rows)
    assert longest == longest_sequence(rows, 40)
    for positions in (longest, longest - 1):
        folder = tmp_path / str(positions)
        make_config("llama", max_position_embeddings=positions, vocab_size=49_152).save_pretrained(folder)
        if positions == longest:
            check_limits(str(folder), None, rows, 40)
        else:
            with pytest.raises(UsageError, match=rf"{longest} tokens .* llama has {positions} positions: prepare with"):
                check_limits(str(folder), None, rows, 40)
    assert longest_sequence([], 40) == 0


def test_a_model_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no config\.json that transformers knows: give a model folder"):
        check_limits(str(tmp_path), None, [], 1)


def test_words_without_an_embedding(tiny_model: Path, tmp_path: Path) -> None:
    prompts = ChatPrompts(load_tokenizer(tiny_model), load_teacher_template())
    words = len(prompts.tokenizer)
    check_words(prompts, make_config("llama", vocab_size=words))
    with pytest.raises(UsageError, match=rf"has id {words - 1} and the model has {words - 1} words"):
        check_words(prompts, make_config("llama", vocab_size=words - 1))
    shutil.copytree(tiny_model, tmp_path / "more")
    tokenizer = load_tokenizer(tmp_path / "more")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    check_words(ChatPrompts(tokenizer, load_teacher_template()), make_config("llama", vocab_size=words))
    tokenizer.chat_template = "<image_soft_token>" + tokenizer.chat_template
    with pytest.raises(UsageError, match="<image_soft_token>"):
        check_words(ChatPrompts(tokenizer, load_teacher_template()), make_config("llama", vocab_size=words))


def test_the_ends_of_turns_are_the_models(tiny_model: Path) -> None:
    """A chat model's turns, a base's texts, or what is padded with: Qwen3.5's config names `<|endoftext|>` alone."""
    prompts = ChatPrompts(load_tokenizer(tiny_model), load_teacher_template())
    tokenizer = prompts.tokenizer
    end, other = prompts.turn_end_id, tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert end != other

    def config(eos: Any) -> Any:
        return make_config("llama", vocab_size=len(tokenizer), eos_token_id=eos)

    generation = SimpleNamespace(eos_token_id=[other, end])
    for found in (config(end), config([other, end]), config(None)):
        check_ends(prompts, found)
    check_ends(prompts, config(7), generation)
    with pytest.raises(UsageError, match=rf"\({end}\) by the tokenizer, and with 7 by the model's config"):
        check_ends(prompts, config(7))
    with pytest.raises(UsageError, match="use the tokenizer that belongs to the model"):
        check_ends(prompts, config(other))
    tokenizer.pad_token = "<|endoftext|>"
    check_ends(prompts, config(other))


def test_gate_evaluation_and_training_refuse_before_a_weight_is_loaded(
    tiny_data: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    """The folder holds no weights, so that loading would end otherwise."""
    from sdft_cli.config import EvalConfig, load_train_config
    from sdft_cli.engine.train.opening import Job, load
    from sdft_cli.stages.evaluate import run_evaluation
    from sdft_cli.stages.gate import measure_gate

    folder = tmp_path / "short"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    make_config("llama", max_position_embeddings=64, vocab_size=49_152).save_pretrained(folder)
    config = load_train_config("cpu-demo", [], {"model": str(folder)})
    job = Job(config=config, data=tiny_data, folder=tmp_path / "run")
    for run in (
        lambda: measure_gate(config, tiny_data),
        lambda: run_evaluation(str(folder), tiny_data, EvalConfig()),
        lambda: load(job, lambda text: None),
    ):
        with pytest.raises(UsageError, match="llama has 64 positions"):
            run()
