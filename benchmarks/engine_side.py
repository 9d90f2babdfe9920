"""This engine's side of the side-by-side measurements: `sdft train`'s trainer, rollouts of forced length.

Settings that both sides share are in `SHARED`; `trl_side.py` says how TRL is given the same ones, and why.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.side_by_side import Job, Watch
from benchmarks.turns import read_turns

SHARED: dict[str, Any] = {
    "learning_rate": 1e-5,
    "weight_decay": 0.0,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "max_grad_norm": 1.0,
    "temperature": 1.0,
    "top_p": 1.0,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "engine, independent": {"prefix_sharing": "none"},
    "engine, packed": {"prefix_sharing": "packed", "optim.max_tokens_per_pass": 16_384},
    "engine, depth-first": {
        "prefix_sharing": "depth_first",
        "segment_tokens": 512,
        "rollout.max_tokens_per_pass": 8_704,  # of 2,048 tokens and their rollouts, four are decoded together
    },
}
"""What distinguishes this engine's sides, as `--set` would say it. A new executor is a new line here.

Turns on their own run one to a pass, since a pass of several has to hold the activations of all. `max_tokens_per_pass`
counts distinct tokens where prefixes are shared.
"""


def overrides(job: Job, variant: str) -> list[str]:
    """Return the `--set` texts of a variant, on top of the profile `cpu-demo`."""
    values: dict[str, Any] = {
        "dtype": job["dtype"],
        "lora.rank": job["lora_rank"],
        "lora.alpha": 2 * job["lora_rank"],
        "gradient_checkpointing": False,
        "max_seq_tokens": 65_536,
        "max_prompt_tokens": 32_768,
        "distill.divergence": "reverse_kl",
        "distill.lambda_on_policy": 1.0,
        "rollout.max_new_tokens": job["rollout_tokens"],
        "rollout.temperature": SHARED["temperature"],
        "rollout.top_p": SHARED["top_p"],
        "rollout.gap_every": "null",
        "rollout.max_tokens_per_pass": 1 << 20,
        "optim.learning_rate": SHARED["learning_rate"],
        "optim.weight_decay": SHARED["weight_decay"],
        "optim.max_grad_norm": SHARED["max_grad_norm"],
        "optim.schedule": "constant",
        "optim.warmup_steps": 0,
        "optim.max_steps": 2,
        "optim.turns_per_step": job["turns"],
        "optim.max_tokens_per_pass": 1,
        **VARIANTS[variant],
    }
    return [f"{key}={value}" for key, value in values.items()]


def open_trainer(job: Job, variant: str) -> tuple[Any, list[Any], Any]:
    """Load everything that a step needs; return the trainer, the turns' records and the warm-up record."""
    from accelerate import Accelerator

    from sdft_cli.config import load_train_config
    from sdft_cli.engine.models.load import load_backend
    from sdft_cli.engine.passes.choose import choose_sharing
    from sdft_cli.engine.train.rollouts import choose_sampling_weights
    from sdft_cli.engine.train.sdft_step import Trainer
    from sdft_cli.prompts.chat import open_prompts
    from sdft_cli.records import read_dataset

    data = read_dataset(Path(job["data"]))
    config = load_train_config("cpu-demo", overrides(job, variant))
    backend = load_backend(config, "transformers", job["model"])
    backend.segment_tokens = config.segment_tokens
    choose_sharing(backend, config.prefix_sharing)
    sampling, _ = choose_sampling_weights(backend, config.rollout)
    trainer = Trainer(config, backend, open_prompts(job["model"], data.manifest), Accelerator(cpu=True), sampling)
    trainer.stop_ids = []  # every rollout has exactly max_new_tokens
    records, hello = read_turns(data, job["turns"])
    return trainer, records, hello


def step(job: Job) -> dict[str, Any]:
    """Run one whole optimiser step, after a short one that is not measured."""
    trainer, records, hello = open_trainer(job, job["side"])
    watch = Watch()
    trainer.step(1, [hello] * len(records), 0)
    with watch():
        result = trainer.step(2, records, len(records))
    lengths = {len(rollout.ids) for rollout in result.taken.rollouts}
    if lengths != {job["rollout_tokens"]} or not result.updated:
        raise SystemExit(f"{job['side']}: rollouts of {lengths} tokens, updated: {result.updated}")
    return {
        "seconds": watch.seconds,
        "rollout_seconds": result.seconds["rollout"],
        "phase_seconds": result.seconds,
        "peak_MB": watch.peak_MB,
        "loaded_MB": watch.base_MB,
        "kl_per_token": sum(map(sum, result.scored.per_token)) / max(1, sum(map(len, result.scored.per_token))),
        "sampling_weights": trainer.sampling,
        "student_prompt_tokens": [len(e.student) for e in result.taken.examples],
        "teacher_prompt_tokens": [len(e.teacher) for e in result.taken.examples],
    }


def generation(job: Job) -> dict[str, Any]:
    """Sample one rollout per turn, after a short one that is not measured."""
    from sdft_cli.engine.objective.batches import step_seed
    from sdft_cli.engine.train.rollouts import sample_rollouts

    trainer, records, hello = open_trainer(job, job["side"])
    prompts = [trainer.example(record).student for record in records]
    settings = trainer.config.rollout.model_copy(update={"max_new_tokens": job["rollout_tokens"]})
    arguments = (trainer.stop_ids, trainer.pad_id, step_seed(0, 1, "rollout"), trainer.sampling)
    watch = Watch()
    sample_rollouts(trainer.backend, [trainer.example(hello).student] * len(prompts), settings, *arguments)
    with watch():
        found = sample_rollouts(trainer.backend, prompts, settings, *arguments)
    if {len(rollout.ids) for rollout in found} != {job["rollout_tokens"]}:
        raise SystemExit(f"{job['side']}: rollouts are not of the length that was forced")
    return {
        "seconds": watch.seconds,
        "peak_MB": watch.peak_MB,
        "loaded_MB": watch.base_MB,
        "sampling_weights": trainer.sampling,
        "student_prompt_tokens": [len(p) for p in prompts],
    }
