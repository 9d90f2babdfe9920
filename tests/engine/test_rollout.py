from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.config import load_train_config  # noqa: E402
from sdft_cli.engine.backend import Backend, load_backend  # noqa: E402
from sdft_cli.engine.rollout import generate, left_padded, sample_rollouts, stop_tokens  # noqa: E402

PROMPTS = [[1, 5, 9, 7, 30, 31], [1, 8], [1, 70, 71, 72]]


@pytest.fixture
def backend(tiny_model: Path) -> Backend:
    return load_backend(load_train_config("cpu-demo", ["lora.rank=4"]), "transformers", str(tiny_model))


def test_padding_goes_to_the_left() -> None:
    ids, mask = left_padded([[7, 8], [9]], 0)
    assert ids.tolist() == [[7, 8], [0, 9]]
    assert mask.tolist() == [[1, 1], [0, 1]]


def test_greedy_rollouts_in_a_batch_equal_step_by_step_argmax(backend: Backend) -> None:
    found = generate(backend, PROMPTS, 6, [2], 2)
    for prompt, rollout in zip(PROMPTS, found, strict=True):
        ids = list(prompt)
        for token in rollout.ids:
            assert int(backend.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids.append(token)
        assert len(rollout.ids) == 6


def test_the_same_seed_gives_the_same_rollouts_merged_or_not(backend: Backend) -> None:
    settings = load_train_config("cpu-demo").rollout
    first, again, other = (sample_rollouts(backend, PROMPTS, settings, [2], 2, seed) for seed in (5, 5, 6))
    assert first == again != other
    assert all(len(r.ids) <= settings.max_new_tokens for r in first)
    one_by_one = settings.model_copy(update={"max_tokens_per_pass": 1})
    assert len(sample_rollouts(backend, PROMPTS, one_by_one, [2], 2, 5)) == len(PROMPTS)


def test_a_rollout_ends_at_a_stop_token_and_keeps_it(backend: Backend) -> None:
    (free,) = generate(backend, [PROMPTS[0]], 6, [2], 2)
    stop = free.ids[2]
    first = free.ids.index(stop)
    (stopped,) = generate(backend, [PROMPTS[0]], 6, [stop], 2)
    assert stopped.finished
    assert stopped.ids == free.ids[: first + 1]
    assert not free.finished


def test_stop_tokens_join_template_and_generation_config(backend: Backend) -> None:
    backend.base.generation_config.eos_token_id = [2, 0]
    assert stop_tokens(backend, 7) == [0, 2, 7]
