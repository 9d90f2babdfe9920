"""The student's own answers for a step: which weights sample, and whether sampler and trainer agree."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdft_cli.config import RolloutSettings, TrainConfig
from sdft_cli.engine.models.adapters import SamplingWeights, decide_weights, lora_layers, weights
from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.models.device_memory import free_memory
from sdft_cli.engine.objective.batches import step_seed
from sdft_cli.engine.objective.schedules import flags_at, rollout_at
from sdft_cli.engine.parallel.processes import Processes
from sdft_cli.engine.passes.decode import Rollout, generate
from sdft_cli.engine.passes.decode_steps import row_seeds
from sdft_cli.engine.passes.padded import padded_passes
from sdft_cli.engine.remote.sampler import Wanted
from sdft_cli.engine.train.vllm_sampler import VllmSampler

ADDABLE = (torch.float32, torch.bfloat16, torch.float16)
"""Types of weights to which a LoRA update can be added; anything else is a quantised code."""


def choose_sampling_weights(backend: Backend, settings: RolloutSettings) -> tuple[SamplingWeights, str]:
    """Return which case of `adapters.weights` samples, and a sentence that says it and why.

    An engine of the backend takes the adapter, and so does a base in shards. Else `auto` leaves the adapter on where
    steps of decoding read the base in float16 (`backend.halves`), or takes the merged copy if it fits in half of the
    memory that is free now.

    Raises:
        UsageError: merged was asked for, and a base weight is quantised, so that nothing can be added to it.
    """
    if backend.vllm is not None:
        return "adapter", "Rollouts: sampled by unsloth's vLLM engine, which gets the adapter anew for every step"
    if backend.sharded:
        return "adapter", "Rollouts: sampled with the adapter on (the base is in shards, of which no copy is made)"
    if backend.halves is not None and settings.weights == "auto":
        return "adapter", "Rollouts: sampled with the adapter on, beside base weights in float16, which holds them"
    size, quantised = merged_copy(backend)
    return decide_weights(settings.weights, size, free_memory(backend.device), quantised)


def merged_copy(backend: Backend) -> tuple[int, str | None]:
    """Return the bytes that a merged copy of the adapted weights takes, and the kind of a layer that is quantised."""
    size, quantised = 0, None
    for layer in lora_layers(backend.model).values():
        base = layer.get_base_layer()
        weight = getattr(base, "weight", None)
        if weight is None or weight.dtype not in ADDABLE:
            quantised = type(base).__name__
        else:
            size += weight.numel() * weight.element_size()
    return size, quantised


def sample_rollouts(
    backend: Backend,
    prompts: Sequence[Sequence[int]],
    settings: RolloutSettings,
    stop_ids: Sequence[int],
    pad_id: int,
    seed: int,
    case: SamplingWeights | None = None,
    record_log_probs: bool = False,
    places: Sequence[int] | None = None,
) -> list[Rollout]:
    """Sample one rollout per prompt from the student; the same arguments give the same rollouts on CPU, bit for bit.

    What is drawn for a prompt depends on the seed and its place in the step alone, not on the prompts beside it.

    A backend with an engine of its own samples with that; `case` says nothing then.

    Prompts of like length are decoded together up to `settings.max_tokens_per_pass` padded tokens. A prompt may come
    more than once: each time it has a sample of its own. Torch's generators are not asked.

    Args:
        case: the weights that sample, from `choose_sampling_weights`; None: ask it now.
        record_log_probs: for `sampler_gap`.
        places: of the prompts in their step; None: these are all.
    """
    if not prompts:
        return []
    seeds = row_seeds(seed, range(len(prompts)) if places is None else places)
    if backend.vllm is not None:
        return VllmSampler(*backend.vllm).sample(prompts, settings, stop_ids, seeds, record_log_probs)
    chosen = case or choose_sampling_weights(backend, settings)[0]
    lengths = [len(prompt) + settings.max_new_tokens for prompt in prompts]
    found: dict[int, Rollout] = {}
    with weights(backend.model, chosen):
        for rows in padded_passes(lengths, settings.max_tokens_per_pass):
            answers = generate(
                backend,
                [prompts[i] for i in rows],
                settings.max_new_tokens,
                stop_ids,
                pad_id,
                settings.temperature,
                settings.top_p,
                record_log_probs,
                seeds=[seeds[i] for i in rows],
            )
            found.update(zip(rows, answers, strict=True))
    return [found[i] for i in range(len(prompts))]


def wanted_at(
    config: TrainConfig, prompts: Sequence[list[int]], step: int, first: int
) -> tuple[Wanted, list[tuple[int, bool]]]:
    """Return the rollouts that a step wants, and its trajectories: whose turn each answers, and whether by the student.

    Args:
        config: the run's.
        prompts: the student's, of the turns of the step.
        step: its number, from 1.
        first: how many turns the steps before had, without those of `teacher.start`.
    """
    settings = rollout_at(config, step)
    turns = [
        (i, own)
        for i, own in enumerate(flags_at(config, step, first, len(prompts)))
        for _ in range(settings.per_record if own else 1)
    ]
    asked = [prompts[i] for i, own in turns if own]
    return Wanted(step, asked, settings, step_seed(config.seed, step, "rollout")), turns


def sample_wanted(
    backend: Backend,
    wanted: Wanted,
    stop_ids: Sequence[int],
    pad_id: int,
    case: SamplingWeights,
    record_log_probs: bool,
    processes: Processes,
) -> list[Rollout]:
    """Sample the rollouts that a step wants here, each of several processes a share; arguments as `sample_rollouts`."""
    rest = (wanted.settings, stop_ids, pad_id, wanted.seed, case, record_log_probs)

    def share(places: list[int]) -> list[Rollout]:
        return sample_rollouts(backend, [wanted.prompts[i] for i in places], *rest, places)

    return processes.spread(wanted.prompts, share, backend.sharing != "none")


def sampler_gap(sampled: Sequence[Rollout], trainer_log_probs: Tensor) -> dict[str, float]:
    """Compare the sampler's log-probabilities of sampled tokens with the trainer's.

    The two run the same policy through other kernels, batches, and perhaps a merged copy of the weights. What they
    disagree on makes the training off-policy.

    Args:
        sampled: rollouts with recorded log-probabilities.
        trainer_log_probs: (sum |y|,) log p of the same tokens in nats at temperature 1, from the training forward pass
            (`loss.token_log_likelihood`), in the order of `sampled`.

    Returns `sampler_gap`, the mean |difference| per token; `sampler_gap_max`, the largest one; `sampler_kl`, the mean
    of log p(sampler) - log p(trainer), which estimates KL(sampler||trainer), without bias where tokens were sampled at
    temperature 1 and top_p 1. All in nats, and NaN if either side has one.

    Raises:
        ValueError: nothing was sampled or recorded, or the counts differ.
    """
    if not sampled or any(r.log_probs is None for r in sampled):
        raise ValueError("sampler_gap needs rollouts whose log-probabilities were recorded")
    own = torch.tensor([x for r in sampled for x in r.log_probs or ()], dtype=torch.float64)
    if own.shape != trainer_log_probs.shape:
        raise ValueError(f"{len(own)} tokens were sampled, the trainer scored {tuple(trainer_log_probs.shape)}")
    difference = own - trainer_log_probs.detach().to("cpu", torch.float64)
    size = difference.abs()
    return {
        "sampler_gap": float(size.mean()),
        "sampler_gap_max": float(size.max()),
        "sampler_kl": float(difference.mean()),
    }
