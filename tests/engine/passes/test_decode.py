from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.config import RolloutSettings, load_train_config  # noqa: E402
from sdft_cli.engine.models.adapters import decide_weights, lora_layers, weights  # noqa: E402
from sdft_cli.engine.models.backend import Backend  # noqa: E402
from sdft_cli.engine.models.backend_transformers import PlainModel, TransformersBackend, attach_lora  # noqa: E402
from sdft_cli.engine.models.load import load_backend  # noqa: E402
from sdft_cli.engine.objective.loss import token_log_likelihood  # noqa: E402
from sdft_cli.engine.passes.decode import LogProbRecorder, Rollout, generate, left_padded, stop_tokens  # noqa: E402
from sdft_cli.engine.passes.executors import response_states  # noqa: E402
from sdft_cli.engine.train.rollouts import (  # noqa: E402
    choose_sampling_weights,
    merged_copy,
    sample_rollouts,
    sampler_gap,
)
from sdft_cli.errors import UsageError  # noqa: E402
from tests.conftest import VOCABULARY  # noqa: E402
from tests.engine.models.test_adapters import randomise, tiny_qwen35  # noqa: E402

PROMPTS = [[1, 5, 9, 7, 30, 31], [1, 8], [1, 70, 71, 72]]
SHARED = [1, 5, 9, 7, 30, 31, 44]
MIXED = [[*SHARED, 50, 51], [*SHARED, 50, 52, 53], [3], [*SHARED[:4], 60], [8, 9], [*range(100, 140)]]
"""Lengths 1 to 40, some with common prefixes."""
SETTINGS = RolloutSettings(max_new_tokens=8, temperature=0.8, top_p=0.95, max_tokens_per_pass=16_384)


def splitmix(state: int, count: int) -> list[int]:
    """The first outputs of SplitMix64 as it is defined, one word at a time."""
    found = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        found.append(z ^ (z >> 31))
    return found


def load(model: Path) -> Backend:
    """A backend whose adapter changes what the model says, as a trained one does."""
    found = load_backend(load_train_config("cpu-demo", ["lora.rank=4"]), "transformers", str(model))
    randomise(found.model)
    return found


@pytest.fixture
def backend(tiny_model: Path) -> Backend:
    return load(tiny_model)


def plain_greedy(backend: Backend, prompt: list[int], count: int) -> list[int]:
    """transformers' own generate, one prompt, no padding, no cache of ours."""
    ids = torch.tensor([prompt])
    output = backend.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count)
    found: list[int] = output[0, len(prompt) :].tolist()
    return found


def trainer_log_probs(backend: Backend, prompts: list[list[int]], sampled: list[Rollout]) -> Any:
    """The trainer's side of the gap, as the loop computes it."""
    states = response_states(backend, prompts, [r.ids for r in sampled], 2).detach()
    return token_log_likelihood(states, backend.head, torch.tensor([i for r in sampled for i in r.ids]))


def by_hand(backend: Backend, prompts: list[list[int]], sampled: list[Rollout]) -> Any:
    """The same from one plain forward pass per sequence."""
    found = []
    for prompt, rollout in zip(prompts, sampled, strict=True):
        with torch.no_grad():
            logits = backend.model(input_ids=torch.tensor([[*prompt, *rollout.ids]])).logits[0].double()
        log_p = logits - logits.exp().sum(-1, keepdim=True).log()
        found += [float(log_p[len(prompt) - 1 + t, token]) for t, token in enumerate(rollout.ids)]
    return torch.tensor(found)


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


@pytest.mark.parametrize("sharing", ["none", "packed", "depth_first"])
@pytest.mark.parametrize("case", ["adapter", "merged"])
def test_greedy_rollouts_are_transformers_own_of_each_prompt_alone(backend: Backend, case: Any, sharing: Any) -> None:
    with weights(backend.model, "base"):
        untrained = [plain_greedy(backend, prompt, 12) for prompt in MIXED]
    alone = [plain_greedy(backend, prompt, 12) for prompt in MIXED]
    assert alone != untrained  # the adapter has a say
    assert all(len(ids) == 12 for ids in alone)
    backend.sharing = sharing
    for prompts, expected in (
        (MIXED, alone),
        (MIXED[:2], alone[:2]),
    ):  # a prompt of one token rules out a shared prefill
        with weights(backend.model, case):
            assert [r.ids for r in generate(backend, prompts, 12, [2], 2)] == expected


def test_greedy_rollouts_of_a_hybrid_with_linear_attention_are_those_of_each_prompt_alone() -> None:
    config = load_train_config("qwen3.5-9b-64k", ["lora.rank=2", "lora.alpha=4"])
    backend = TransformersBackend(attach_lora(tiny_qwen35(), config).eval(), torch.device("cpu"))
    randomise(backend.model)
    prompts = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15]]
    alone = [plain_greedy(backend, prompt, 10) for prompt in prompts]
    assert len({tuple(ids) for ids in alone}) == 3
    for case in ("adapter", "merged"):
        with weights(backend.model, case):
            assert [r.ids for r in generate(backend, prompts, 10, [], 0)] == alone


@pytest.mark.slow
def test_greedy_rollouts_of_smollm2_are_transformers_own(smollm2: Path) -> None:
    backend = load_backend(load_train_config("cpu-demo"), "transformers", str(smollm2))
    generator = torch.Generator().manual_seed(3)
    for layer in lora_layers(backend.model).values():
        layer.lora_B["default"].weight.data.normal_(generator=generator).mul_(0.01)
    prompts = [[1, 9690, 198, 2683, 359, 253], [1, 9690, 198, 2683, 28], [1, 520, 9531, 198, 28120, 504, 1029, 338, 30]]
    alone = [plain_greedy(backend, prompt, 8) for prompt in prompts]
    for sharing in ("none", "packed", "depth_first"):
        backend.sharing = sharing
        for case in ("adapter", "merged"):
            with weights(backend.model, case):
                assert [r.ids for r in generate(backend, prompts, 8, [2], 2)] == alone


HOSTILE = {
    "bos_token_id": 1,
    "eos_token_id": [2, 17],
    "pad_token_id": 2,
    "do_sample": True,
    "temperature": 3.0,
    "top_k": 2,
    "top_p": 0.1,
    "min_p": 0.5,
    "typical_p": 0.3,
    "epsilon_cutoff": 0.01,
    "eta_cutoff": 0.01,
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "max_length": 7,
    "max_new_tokens": 2,
    "min_length": 30,
    "min_new_tokens": 30,
    "max_time": 1e-6,
    "bad_words_ids": [[i] for i in range(3, 40_000)],
    "suppress_tokens": list(range(40_000, 49_000)),
    "begin_suppress_tokens": list(range(3, 40_000)),
    "forced_bos_token_id": 11,
    "forced_eos_token_id": 2,
    "exponential_decay_length_penalty": [1, 5.0],
    "num_return_sequences": 2,
    "return_dict_in_generate": True,
    "output_scores": True,
    "use_cache": False,
    "cache_implementation": "static",
    "stop_strings": ["a"],
}


@pytest.fixture
def hostile(tiny_model: Path, tmp_path: Path) -> Backend:
    """The same model with a generation config that changes everything it can."""
    folder = tmp_path / "hostile"
    shutil.copytree(tiny_model, folder)
    (folder / "generation_config.json").write_text(json.dumps(HOSTILE))
    return load(folder)


def test_a_models_generation_config_does_not_change_what_is_sampled(backend: Backend, hostile: Backend) -> None:
    own = hostile.base.generation_config
    assert (own.repetition_penalty, own.min_p, own.num_return_sequences) == (5.0, 0.5, 2)  # it was read
    for sharing in ("none", "packed", "depth_first"):
        backend.sharing = hostile.sharing = sharing
        assert generate(hostile, PROMPTS, 8, [2], 2) == generate(backend, PROMPTS, 8, [2], 2)
        assert sample_rollouts(hostile, PROMPTS, SETTINGS, [2], 2, 5) == sample_rollouts(
            backend, PROMPTS, SETTINGS, [2], 2, 5
        )
    bare = [TransformersBackend(PlainModel(b.model.unload()), b.device) for b in (hostile, backend)]
    assert generate(bare[0], PROMPTS, 8, [2], 2) == generate(bare[1], PROMPTS, 8, [2], 2)
    assert hostile.base.generation_config is own
    assert stop_tokens(hostile, [7]) == [2, 7, 17]


def test_generation_settings_in_the_models_config_do_not_either(backend: Backend, tiny_model: Path) -> None:
    old_style = load(tiny_model)
    old_style.base.config.repetition_penalty = 5.0
    old_style.base.config.top_k = 2
    assert generate(old_style, PROMPTS, 8, [2], 2) == generate(backend, PROMPTS, 8, [2], 2)


def test_samples_follow_temperature_and_top_p_and_nothing_else(hostile: Backend) -> None:
    """One prompt, token by token, from the definitions of nucleus sampling and of SplitMix64, in plain Python."""
    prompt, temperature, top_p = PROMPTS[0], 0.7, 0.8
    settings = RolloutSettings(max_new_tokens=10, temperature=temperature, top_p=top_p, weights="adapter")
    (found,) = sample_rollouts(hostile, [prompt], settings, [], 2, seed=11)
    ids, kept = list(prompt), []
    for place in splitmix(int(hashlib.sha256(b"11/0").hexdigest()[:16], 16), 10):
        with torch.no_grad():
            p = (hostile.model(input_ids=torch.tensor([ids])).logits[0, -1] / temperature).softmax(-1)
        order = p.argsort(descending=True)
        nucleus = order[p[order].cumsum(0) - p[order] < top_p]  # the smallest set that reaches top_p
        numbers = splitmix(place, len(p))  # of each word one, in (0, 1): it makes an exponential time of arrival
        times = {w: -math.log((2 * (numbers[w] >> 12) + 1) / 2**53) / float(p[w]) for w in nucleus.tolist()}
        kept.append(len(nucleus))
        ids.append(min(times, key=lambda word: times[word]))
    assert found.ids == ids[len(prompt) :]
    assert max(kept) > 2  # the model's own top_k would have been felt


def test_the_same_seed_gives_the_same_rollouts_bit_for_bit(backend: Backend) -> None:
    for case in ("merged", "adapter"):
        first, again, other = (
            sample_rollouts(backend, PROMPTS, SETTINGS, [2], 2, seed, case, record_log_probs=True) for seed in (5, 5, 6)
        )
        assert first == again  # ids and log-probabilities
        assert [r.ids for r in first] != [r.ids for r in other]
        assert all(len(r.ids) <= SETTINGS.max_new_tokens for r in first)
    one_by_one = SETTINGS.model_copy(update={"max_tokens_per_pass": 1})
    assert len(sample_rollouts(backend, PROMPTS, one_by_one, [2], 2, 5)) == len(PROMPTS)
    assert sample_rollouts(backend, [], SETTINGS, [2], 2, 5) == []


def test_rollouts_come_back_in_the_order_of_their_prompts(backend: Backend) -> None:
    """Buckets are by length; temperature near 0 makes samples greedy, so each can be told by its prompt."""
    cold = SETTINGS.model_copy(update={"temperature": 1e-4, "max_tokens_per_pass": 30})
    greedy = [r.ids for p in MIXED for r in generate(backend, [p], 8, [2], 2)]
    assert [r.ids for r in sample_rollouts(backend, MIXED, cold, [2], 2, 1)] == greedy


def test_sampling_leaves_the_global_generator_alone(backend: Backend) -> None:
    torch.manual_seed(99)
    expected = torch.rand(4)
    torch.manual_seed(99)
    sample_rollouts(backend, PROMPTS, SETTINGS, [2], 2, 5)
    assert torch.equal(torch.rand(4), expected)
    torch.manual_seed(99)
    with pytest.raises(IndexError):
        sample_rollouts(backend, [[1, 10**6]], SETTINGS, [2], 2, 5)
    assert torch.equal(torch.rand(4), expected)
    assert backend.base.generation_config.eos_token_id == 2


def test_several_rollouts_of_a_prompt_share_its_prefill_and_differ(backend: Backend) -> None:
    backend.sharing = "packed"
    seen: list[int] = []
    handle = backend.trunk.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    prompts = [[*SHARED, 50, 51]] * 4 + [[*SHARED, 60, 61]] * 4
    found = sample_rollouts(backend, prompts, SETTINGS, [], 2, 5)
    handle.remove()
    # All but the last token of each prompt, the common part once; then one token of each of the eight at every step.
    assert seen == [len(SHARED) + 2, *[8] * SETTINGS.max_new_tokens]
    assert len({tuple(r.ids) for r in found[:4]}) == 4
    assert len({tuple(r.ids) for r in found[4:]}) == 4


def test_a_rollout_ends_at_a_stop_token_and_keeps_it(backend: Backend) -> None:
    (free,) = generate(backend, [PROMPTS[0]], 6, [2], 2)
    stop = free.ids[2]
    first = free.ids.index(stop)
    (stopped,) = generate(backend, [PROMPTS[0]], 6, [stop], 2)
    assert stopped.finished
    assert stopped.ids == free.ids[: first + 1]
    assert not free.finished


def test_a_rollout_ends_at_the_first_of_several_stop_tokens_whatever_its_neighbours_do(backend: Backend) -> None:
    free = generate(backend, PROMPTS, 8, [], 2, record_log_probs=True)
    stops = [free[0].ids[5], free[0].ids[3], free[1].ids[1]]
    found = generate(backend, PROMPTS, 8, stops, 2, record_log_probs=True)
    for long, short in zip(free, found, strict=True):
        ends = [i for i, token in enumerate(long.ids) if token in stops]
        length = ends[0] + 1 if ends else 8
        assert short.ids == long.ids[:length]
        assert short.finished == bool(ends)
        assert short.log_probs == pytest.approx(long.log_probs[:length], abs=1e-5)
    assert len({len(r.ids) for r in found}) > 1


def test_stop_tokens_join_template_and_generation_config(backend: Backend) -> None:
    for configured, expected in (([2, 0], [0, 2, 7]), (3, [3, 7]), (None, [7]), ([7], [7])):
        backend.base.generation_config.eos_token_id = configured
        assert stop_tokens(backend, [7]) == expected


@pytest.mark.parametrize("outside", [VOCABULARY, -1])
def test_a_stop_token_that_cannot_be_sampled_is_refused(backend: Backend, outside: int) -> None:
    backend.base.generation_config.eos_token_id = [2, outside]
    with pytest.raises(UsageError) as caught:
        stop_tokens(backend, [7])
    assert str(caught.value) == (
        f"Stop token {outside} is outside the model's vocabulary of {VOCABULARY} words: correct eos_token_id in its "
        "generation_config.json, or use the tokenizer that belongs to the model."
    )


@pytest.mark.parametrize("sharing", ["none", "packed", "depth_first"])
def test_recorded_log_probs_are_of_raw_logits(backend: Backend, sharing: Any) -> None:
    """They are transformers' `output_logits` where it writes the same tokens: before temperature and top_p."""
    backend.sharing = sharing
    torch.manual_seed(4)
    found = generate(backend, PROMPTS, 6, [], 2, 0.5, 0.6, record_log_probs=True)
    assert any(r.ids != greedy.ids for r, greedy in zip(found, generate(backend, PROMPTS, 6, [], 2), strict=True))
    ids, mask = left_padded(PROMPTS, 2)

    def forced(so_far: Any, scores: Any) -> Any:
        chosen = torch.tensor([[r.ids[so_far.shape[1] - ids.shape[1]]] for r in found])
        return torch.full_like(scores, -torch.inf).scatter_(-1, chosen, 0.0)

    assert generate(backend, PROMPTS, 6, [], 2)[0].log_probs is None
    output = backend.model.double().generate(  # in fp64, so that of all rounding only ours is left
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=6,
        eos_token_id=None,
        do_sample=False,
        logits_processor=[forced],
        return_dict_in_generate=True,
        output_logits=True,
    )
    assert [r.ids for r in found] == output.sequences[:, ids.shape[1] :].tolist()
    raw = torch.stack(output.logits, 1).log_softmax(-1)
    for row, rollout in enumerate(found):
        expected = [float(raw[row, t, token]) for t, token in enumerate(rollout.ids)]
        assert rollout.log_probs == pytest.approx(expected, abs=1e-5)


def test_a_step_that_generate_takes_back_is_not_recorded() -> None:
    recorder = LogProbRecorder()
    scores = torch.tensor([[0.0, 1.0, 2.0]])
    recorder(torch.tensor([[0]]), scores)
    recorder(torch.tensor([[0, 2]]), scores)
    recorder(torch.tensor([[0, 2, 1]]), scores)
    log_p = scores.log_softmax(-1)[0].tolist()
    assert recorder.finish(torch.tensor([[0, 2]]), 1).tolist() == [[log_p[2]]]


@pytest.mark.parametrize("sharing", ["none", "packed", "depth_first"])
@pytest.mark.parametrize(("case", "bound"), [("adapter", 2e-5), ("merged", 2e-4)])
def test_sampler_and_trainer_agree_in_fp32(backend: Backend, case: Any, bound: float, sharing: Any) -> None:
    backend.sharing = sharing
    sampled = sample_rollouts(backend, MIXED[:2], SETTINGS, [2], 2, 5, case, record_log_probs=True)
    gap = sampler_gap(sampled, trainer_log_probs(backend, MIXED[:2], sampled))
    assert 0 <= gap["sampler_gap"] <= gap["sampler_gap_max"] <= bound
    assert abs(gap["sampler_kl"]) <= gap["sampler_gap"]


def test_the_gap_of_another_sampler_is_what_plain_arithmetic_says(backend: Backend) -> None:
    sampled = sample_rollouts(backend, PROMPTS, SETTINGS, [2], 2, 5, "merged", record_log_probs=True)
    before = by_hand(backend, PROMPTS, sampled)
    for layer in lora_layers(backend.model).values():
        layer.lora_B["default"].weight.data.mul_(1.5)
    difference = before - by_hand(backend, PROMPTS, sampled)
    gap = sampler_gap(sampled, trainer_log_probs(backend, PROMPTS, sampled))
    assert gap["sampler_gap"] == pytest.approx(float(difference.abs().mean()), rel=1e-3)
    assert gap["sampler_gap_max"] == pytest.approx(float(difference.abs().max()), rel=1e-3)
    assert gap["sampler_kl"] == pytest.approx(float(difference.mean()), rel=1e-3)
    assert gap["sampler_gap"] > 0.1  # the default bound


def test_the_gap_by_hand_and_its_bad_input() -> None:
    sampled = [Rollout([5], True, [-1.0]), Rollout([6, 7], False, [-2.0, -3.0])]
    assert sampler_gap(sampled, torch.tensor([-1.5, -1.0, -3.0])) == {
        "sampler_gap": pytest.approx(0.5),
        "sampler_gap_max": pytest.approx(1.0),
        "sampler_kl": pytest.approx(-0.5 / 3),
    }
    assert math.isnan(sampler_gap(sampled, torch.tensor([float("nan"), 0, 0]))["sampler_gap"])
    with pytest.raises(ValueError, match=r"3 tokens were sampled, the trainer scored \(2,\)"):
        sampler_gap(sampled, torch.zeros(2))
    for nothing in ([], [Rollout([5], True)]):
        with pytest.raises(ValueError, match="were recorded"):
            sampler_gap(nothing, torch.zeros(1))


GB = 10**9


@pytest.mark.parametrize(
    ("asked", "size", "free", "quantised", "case", "sentence"),
    [
        ("auto", 2 * GB, 4 * GB, None, "merged", "from a merged copy of the adapted weights (2.00 GB, fits in half of"),
        ("auto", 2 * GB + 1, 4 * GB, None, "adapter", "(a merged copy takes 2.00 GB, more than half of the 4.00 GB"),
        (
            "auto",
            GB,
            None,
            None,
            "adapter",
            "with the adapter on (a merged copy takes 1.00 GB; free memory is unknown)",
        ),
        ("auto", 0, 4 * GB, "Linear4bit", "adapter", "with the adapter on (the base layers are quantised: Linear4bit)"),
        ("merged", 2 * GB, GB, None, "merged", "from a merged copy of the adapted weights, 2.00 GB (as asked)"),
        ("adapter", 0, 4 * GB, "Linear4bit", "adapter", "with the adapter on (as asked)"),
    ],
)
def test_which_weights_sample_is_decided_by_memory_and_said(
    asked: Any, size: int, free: int | None, quantised: str | None, case: str, sentence: str
) -> None:
    found = decide_weights(asked, size, free, quantised)
    assert found[0] == case
    assert sentence in found[1]


def test_the_copy_is_as_large_as_the_adapted_weights(backend: Backend) -> None:
    # Two Llama layers in fp32: q, k, v, o and the MLP, hidden 32, MLP 64, 2 of 4 heads for keys and values.
    assert merged_copy(backend) == (2 * 4 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64), None)
    case, sentence = choose_sampling_weights(backend, SETTINGS)
    assert case == "merged"
    assert sentence.startswith("Rollouts: sampled from a merged copy of the adapted weights (0.00 GB, fits in half of")
    assert choose_sampling_weights(backend, SETTINGS.model_copy(update={"weights": "adapter"}))[0] == "adapter"


def test_quantised_base_weights_are_not_merged(backend: Backend) -> None:
    base = next(iter(lora_layers(backend.model).values())).get_base_layer()
    base.weight = torch.nn.Parameter(torch.zeros_like(base.weight, dtype=torch.uint8), requires_grad=False)
    assert choose_sampling_weights(backend, SETTINGS) == (
        "adapter",
        "Rollouts: sampled with the adapter on (the base layers are quantised: Linear)",
    )
    with pytest.raises(
        UsageError, match=r"are quantised and nothing can be added to them: use --set rollout\.weights="
    ):
        choose_sampling_weights(backend, SETTINGS.model_copy(update={"weights": "merged"}))
