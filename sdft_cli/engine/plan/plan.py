"""What a training run will need, before it is paid for: memory, floating-point operations, hours, records lost.

No weight is loaded and nothing is run. Memory is in `memory.py`, operations in `flops.py`, hours in `hours.py`.
Prefixes that records share are not counted as shared, since that takes their tokens: operations and hours are upper
bounds there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sdft_cli.config import TrainConfig, with_settings
from sdft_cli.engine.models.backend import Sharing
from sdft_cli.engine.plan.assumed import Assumed
from sdft_cli.engine.plan.cards import RESERVE, Gpu
from sdft_cli.engine.plan.hours import RunWork, longest_lengths, run_work
from sdft_cli.engine.plan.memory import Memory, Phase, static_parts, step_memory
from sdft_cli.engine.plan.model_shape import BYTES, Shape
from sdft_cli.engine.plan.remedies import remedies
from sdft_cli.engine.plan.speed import ADAPTER_LAUNCH, LAUNCH, NODE, PASS_LAUNCH, UTILISATION, Speed
from sdft_cli.records import RecordRow

WINDOWS = 64
"""Candidates for the longest step: so many windows of records next to each other in length."""


def longest_step(
    rows: Sequence[RecordRow],
    shape: Shape,
    config: TrainConfig,
    sharing: Sharing,
    fused: bool,
) -> Memory:
    """Return the memory of the step that needs the most; any records may meet in a step, with their longest answers.

    Tried are steps of records next to each other in length: the longest ones, and `WINDOWS` others, since many records
    of middling length with padding can need more than the longest one alone. In every phase the worst one counts.
    """
    return worst(
        [step_memory(longest_lengths(step, config), shape, config, sharing, fused) for step in long_steps(rows, config)]
    )


def long_steps(rows: Sequence[RecordRow], config: TrainConfig) -> list[list[RecordRow]]:
    """Return the steps that `longest_step` tries; a record stands there as often as it is sampled."""
    ordered = sorted(
        rows, key=lambda r: (r.teacher_prompt_tokens + config.longest_answer(r.reference_tokens), r.prompt_tokens)
    )
    count = min(config.optim.turns_per_step, len(ordered))
    last = len(ordered) - count
    starts = sorted({last * i // WINDOWS for i in range(WINDOWS + 1)})
    return [ordered[start : start + count] * config.rollout.per_record for start in starts]


def worst(steps: Sequence[Memory]) -> Memory:
    """Return each phase as the step has it that needs the most there."""
    return Memory(tuple(max(phase, key=lambda p: p.total) for phase in zip(*(m.phases for m in steps), strict=True)))


def choose_sharing(
    possible: Sequence[Sharing],
    rows: Sequence[RecordRow],
    shape: Shape,
    config: TrainConfig,
    usable: int | None,
    fused: bool,
) -> Sharing:
    """Return the sharing that a run would take on a card with so many usable bytes (None: any)."""
    for sharing in possible:
        if usable is None or longest_step(rows, shape, config, sharing, fused).peak.total <= usable:
            return sharing
    return possible[-1]


def on_backend(memory: Memory, shape: Shape, config: TrainConfig, assumed: Assumed, card: Gpu | None) -> Memory:
    """Return the phases as the backend has them.

    unsloth keeps the inputs of layers in host memory where there is gradient checkpointing; its vLLM engine takes its
    share of the card from the start, weights included, and needs no cache and no copy of the weights.
    """
    phases = list(memory.phases)
    if assumed.backend.name == "unsloth":
        phases = [Phase(p.name, {k: v for k, v in p.parts.items() if k != "layer inputs"}) for p in phases]
    if config.fast_inference and card:
        loaded = static_parts(shape, config, gradients=False)
        cache = max(0, int(config.fast_inference_memory * card.memory_gb * 2**30) - loaded["frozen weights"])
        phases = [
            Phase(p.name, {**(loaded if p.name == "rollout" else p.parts), "vLLM's cache": cache}) for p in phases
        ]
    return Memory(tuple(phases))


def plan_of(
    rows: Sequence[RecordRow],
    shape: Shape,
    config: TrainConfig,
    sharing: Sharing,
    assumed: Assumed,
    gpu: Gpu | None = None,
    rollout_tokens: int | None = None,
    utilisation: float = UTILISATION,
    heldout: Sequence[RecordRow] = (),
) -> dict[str, Any]:
    """Return the whole plan as a JSON-able document; memory in bytes, work in operations and hours.

    Args:
        rows: the training records that the profile takes, at least one.
        shape: of the model with the profile's adapter.
        sharing: how common prefixes are computed (`choose_sharing`).
        assumed: backend, kernels, sampling weights and decoding.
        gpu: the card, or None: then only the need is reported.
        rollout_tokens: length of a rollout for operations and hours; by default the mean length of the experts' turns,
            at most the cap. Memory always assumes the longest trajectories.
        utilisation: share of the card's peak arithmetic that large products reach.
        heldout: the validation records.
    """
    mean = round(sum(row.reference_tokens for row in rows) / len(rows))
    rollout = min(rollout_tokens or max(1, mean), config.rollout.max_new_tokens)
    config = with_settings(config, {"rollout.weights": "merged" if assumed.engine.merged else "adapter"})

    def predict(some: Sequence[RecordRow], settings: TrainConfig, sizes: Shape) -> Memory:
        memory = longest_step(some, sizes, settings, sharing, assumed.engine.fused)
        return on_backend(memory, sizes, settings, assumed, gpu)

    memory = predict(rows, config, shape)
    work = run_work(rows, heldout, shape, config, sharing, assumed.engine, rollout, gpu, utilisation)
    peak = memory.peak
    document: dict[str, Any] = {
        "profile": config.profile,
        "model": config.model,
        "records": len(rows),
        "backend": assumed.backend.name,
        "prefix_sharing": sharing,
        "engine": asdict(assumed.engine),
        "parameters": shape.parameters,
        "adapter_parameters": shape.adapter_parameters,
        "kv_bytes_per_token": shape.kv_bytes(BYTES[config.dtype]),
        "memory": {"phases": [{**asdict(p), "total": p.total} for p in memory.phases], "peak": peak.name},
        "peak_bytes": peak.total,
        "rollout_tokens": rollout,
        "steps": work.steps,
        "flops": {**asdict(work.flops), "total": work.flops.total},
        "decode_bytes": work.decode_bytes,
        "decode_steps": work.decode_steps,
        "hours": work.hours,
        "gpu": None,
        "remedies": [],
        "assumptions": [
            *assumed.told,
            *assumptions(shape, config, sharing, rollout, rollout_tokens is not None),
            *(_hours_told(shape, config, work, assumed, gpu, utilisation) if gpu and work.hours else ()),
        ],
    }
    if gpu:
        fits = peak.total <= gpu.usable
        known = {name: value for name, value in asdict(gpu).items() if name != "link_gb_per_s"}
        document["gpu"] = {**known, "usable_bytes": gpu.usable, "fits": fits, "margin": gpu.usable - peak.total}
        document["assumptions"].append(f"{RESERVE:.0%} of the card is left to the CUDA context and fragmentation")
        if not fits:
            document["remedies"] = [asdict(r) for r in remedies(rows, shape, config, predict, gpu.usable)]
    return document


def assumptions(shape: Shape, config: TrainConfig, sharing: Sharing, rollout: int, given: bool) -> list[str]:
    """Say what the numbers rest on."""
    of_rollouts = f"every rollout is as long as its cap, {config.rollout.max_new_tokens} tokens"
    longest = [of_rollouts] * config.samples
    longest += ["the expert's turns are as long as they are"] * config.trains_on_references
    found = [
        f"memory: {', and '.join(longest)}",
        f"operations and hours: {rollout} tokens in a rollout, "
        + ("as given" if given else "the mean of the experts' turns (at most the cap)"),
    ]
    if config.objective == "sft":
        found.append("objective is sft: it samples nothing and has no teacher, so those phases do not apply")
    else:
        distill = config.distill
        fewer = {
            "lambda_on_policy is below 1": distill.lambda_on_policy < 1,
            "lambda_start is below 1": distill.lambda_start is not None and distill.lambda_start < 1,
            "teacher.start samples nothing": config.teacher.start > 0,
        }
        if reasons := [reason for reason, holds in fewer.items() if holds]:
            found.append(f"every record is taken to be sampled, although {' and '.join(reasons)}: an upper bound")
    if config.dtype == "float32":
        found.append("dtype is float32, and the cards' arithmetic is that of 16-bit tensors: hours are far too few")
    if sharing != "none":
        kind = sharing.replace("_", "-")
        found.append(f"prefixes that records share ({kind}) are not counted as shared: upper bounds")
    if config.fast_inference:
        found.append("fast_inference: vLLM takes its share of the card (fast_inference_memory) from the start")
    return found


def _hours_told(
    shape: Shape, config: TrainConfig, work: RunWork, assumed: Assumed, gpu: Gpu, utilisation: float
) -> list[str]:
    """Say what the hours rest on."""
    launches = Speed(shape, config, gpu, assumed.engine, utilisation).decode_launches()
    count = f"{launches.own + launches.adapter:,.0f} kernels"
    each = f"{LAUNCH * 1e6:.0f} us each, {ADAPTER_LAUNCH * 1e6:.1f} for the adapter's, if that is more"
    decoding = f"{NODE * 1e6:.1f} us each (not measured), added" if assumed.engine.graphs else each
    assert work.hours is not None
    return [
        f"a step of decoding reads its bytes at {gpu.gb_per_s:,.0f} GB/s and runs {count}: {decoding}",
        f"a pass: large products at {utilisation:.0%} of the card's peak, the rest as traffic; or its launches, "
        f"{PASS_LAUNCH * 1e6:.0f} us each, if they take more",
        "these constants are fitted to one H100 (docs/gpu.md), where twelve measured times are within 20% of them; "
        "other cards, unsloth and autocast were not measured",
        "checkpoints and loading: 1 GB/s; not in the hours: encoding, metrics, updates, downloads",
    ]
