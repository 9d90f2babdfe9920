"""What a training run will need, before it is paid for: memory, floating-point operations, hours, records lost.

No weight is loaded and nothing is run. Memory is in `memory.py`, operations in `flops.py`. Prefixes that records
share are not counted as shared, since that takes their tokens: operations and hours are upper bounds there.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import yaml

from sdft_cli.config import TrainConfig, with_settings
from sdft_cli.engine.models.backend import Sharing
from sdft_cli.engine.models.load import has_package
from sdft_cli.engine.objective.batches import Order
from sdft_cli.engine.passes.padded import padded_passes
from sdft_cli.engine.plan.flops import (
    StepFlops,
    attended,
    backward_flops,
    causal_pairs,
    decode_flops,
    forward_flops,
    head_flops,
)
from sdft_cli.engine.plan.memory import Lengths, Memory, padded, rollout_passes, step_memory, weight_bytes
from sdft_cli.engine.plan.model_shape import BYTES, Shape
from sdft_cli.errors import UsageError
from sdft_cli.records import RecordRow
from sdft_cli.resources import resource_text

RESERVE = 0.06
"""Share of a card's memory left to the CUDA context, libraries and fragmentation; an assumption."""
UTILISATION = 0.35
"""Share of a card's peak arithmetic that training reaches; an assumption."""
WINDOWS = 64
"""Candidates for the longest step: so many windows of records next to each other in length."""


@dataclass(frozen=True)
class Gpu:
    """A card: memory in GB of 2^30 bytes, dense TFLOP/s of the compute dtype, GB/s of memory bandwidth."""

    name: str
    memory_gb: float
    tflops: float | None
    gb_per_s: float | None
    note: str = ""

    @property
    def usable(self) -> int:
        return int(self.memory_gb * 2**30 * (1 - RESERVE))


def known_gpus() -> list[Gpu]:
    """Return the cards of `templates/gpus.yaml`."""
    return [Gpu(**entry) for entry in yaml.safe_load(resource_text("templates", "gpus.yaml"))]


def find_gpu(text: str) -> Gpu:
    """Return a card by name (`h100-80gb`), or one of a size (`80GB`): then the slowest known card of that size speaks.

    Raises:
        UsageError: it is neither a known name nor a size.
    """
    cards = known_gpus()
    for card in cards:
        if card.name == text.lower():
            return card
    size = re.fullmatch(r"(\d+(?:\.\d+)?)\s*gi?b", text.lower())
    if not size or float(size[1]) == 0:
        raise UsageError(f"--gpu {text} is no size (80GB) and no card: use one of {', '.join(c.name for c in cards)}.")
    memory = float(size[1])
    alike = min(cards, key=lambda c: (abs(c.memory_gb - memory), c.tflops))
    return Gpu(text, memory, alike.tflops, alike.gb_per_s, f"speed of {alike.name}")


def machine_gpu() -> Gpu | None:
    """Return this machine's first CUDA device, with the speed of the known card that its name contains, or None."""
    import torch

    if not torch.cuda.is_available():
        return None
    device = torch.cuda.get_device_properties(0)
    memory = device.total_memory / 2**30
    name = re.sub(r"[^a-z0-9]", "", device.name.lower())
    alike = [c for c in known_gpus() if c.name.rsplit("-", 1)[0].replace("-", "") in name]
    if not alike:
        return Gpu(device.name, memory, None, None, "its speed is not known: name a card with --gpu for hours")
    card = min(alike, key=lambda c: abs(c.memory_gb - memory))
    return Gpu(device.name, memory, card.tflops, card.gb_per_s, f"speed of {card.name}")


def lengths_of(rows: Sequence[RecordRow], rollout: int) -> list[Lengths]:
    """Return the records' lengths with an assumed trajectory of `rollout` tokens."""
    return [Lengths(row.prompt_tokens, row.teacher_prompt_tokens, rollout) for row in rows]


def longest_step(rows: Sequence[RecordRow], shape: Shape, config: TrainConfig, sharing: Sharing, fused: bool) -> Memory:
    """Return the memory of the step that needs the most; any records may meet in a step, rollouts are at their cap.

    Tried are steps of records next to each other in length: the longest ones, and `WINDOWS` others, since many records
    of middling length with padding can need more than the longest one alone. In every phase the worst one counts.
    """
    each = config.rollout.per_record
    ordered = sorted(lengths_of(rows, config.rollout.max_new_tokens), key=lambda x: (x.teacher, x.student))
    count = min(config.optim.turns_per_step, len(ordered))
    last = len(ordered) - count
    starts = sorted({last * i // WINDOWS for i in range(WINDOWS + 1)})
    steps = [step_memory(ordered[s : s + count] * each, shape, config, sharing, fused) for s in starts]
    return Memory(tuple(max(phase, key=lambda p: p.total) for phase in zip(*(m.phases for m in steps), strict=True)))


def choose_sharing(
    possible: Sequence[Sharing], rows: Sequence[RecordRow], shape: Shape, config: TrainConfig, usable: int | None
) -> Sharing:
    """Return the sharing that a run would take on a card with so many usable bytes (None: any)."""
    for sharing in possible:
        if usable is None or longest_step(rows, shape, config, sharing, fused=True).peak.total <= usable:
            return sharing
    return possible[-1]


def step_flops(step: Sequence[Lengths], shape: Shape, config: TrainConfig, sharing: Sharing) -> StepFlops:
    """Return the operations of one step, with the passes that the trainer would make of it."""
    unmerged = config.rollout.weights == "adapter"
    total = StepFlops(
        prefill=forward_flops(shape, sum(x.student for x in step), causal_pairs(x.student for x in step), unmerged),
        decode=sum(decode_flops(shape, x.student, x.rollout, unmerged) for x in step),
        heads=3 * head_flops(shape, sum(x.rollout for x in step)),
    )
    alone = [[i] for i in range(len(step))] if sharing != "none" else None
    most = config.optim.max_tokens_per_pass
    # Depth-first runs each shared segment forward twice; the last part of a turn, once. All counts as shared here.
    again = sharing == "depth_first" or config.gradient_checkpointing
    for rows in alone or padded_passes([x.teacher + x.rollout for x in step], most):
        teacher = padded([step[i].teacher + step[i].rollout for i in rows])
        total += StepFlops(
            teacher=forward_flops(shape, teacher.tokens, attended(teacher), config.teacher.kind != "base")
        )
    for rows in alone or padded_passes([x.student + x.rollout for x in step], most):
        student = padded([step[i].student + step[i].rollout for i in rows])
        pairs = attended(student)
        forward = forward_flops(shape, student.tokens, pairs, adapter=True)
        backward = backward_flops(shape, student.tokens, pairs) + (forward if again else 0)
        total += StepFlops(student=forward, backward=backward)
    return total


def decode_bytes(step: Sequence[Lengths], shape: Shape, config: TrainConfig) -> float:
    """Return the bytes read while decoding: all weights and every sequence's cache, once per token."""
    size = BYTES[config.dtype]
    weights = weight_bytes(shape, config)
    weights += 4 * shape.adapter_parameters if config.rollout.weights == "adapter" else 0
    total = 0.0
    for rows in rollout_passes(step, config):
        some = [step[i] for i in rows]
        new = max(x.rollout for x in some)
        cached = sum(x.student + x.rollout / 2 for x in some) * shape.kv_bytes(size)
        total += new * (weights + cached + len(some) * 2 * shape.state_bytes(size))
    return total


@dataclass(frozen=True)
class RunWork:
    """The work of a whole run, and the hours it takes on a card (None: no card, or its speed is not known)."""

    steps: int
    flops: StepFlops
    decode_bytes: float
    hours: Mapping[str, float] | None


def run_work(
    rows: Sequence[RecordRow],
    shape: Shape,
    config: TrainConfig,
    sharing: Sharing,
    rollout: int,
    gpu: Gpu | None,
    utilisation: float,
) -> RunWork:
    """Return the work of the run, over the very records that its seed will draw, with `rollout` tokens each."""
    lengths = lengths_of(rows, rollout)
    flops, read = StepFlops(), 0.0
    order = Order(rows, config.optim, config.seed)
    for number in range(1, config.optim.max_steps + 1):
        step = [lengths[i] for i in order.step(number).indices] * config.rollout.per_record
        flops += step_flops(step, shape, config, sharing)
        read += decode_bytes(step, shape, config)
    hours = None
    if gpu and gpu.tflops and gpu.gb_per_s:
        speed = gpu.tflops * 1e12 * utilisation * 3600
        decode = max(flops.decode / speed, read / (gpu.gb_per_s * 1e9 * 3600))
        parts = {name: value / speed for name, value in asdict(flops).items()}
        hours = {**parts, "decode": decode}
        hours["total"] = sum(hours.values())
    return RunWork(config.optim.max_steps, flops, read, hours)


Predict = Callable[[Sequence[RecordRow], TrainConfig, Shape], Memory]


@dataclass(frozen=True)
class Remedy:
    """A change of the profile, the peak that it would have, and the records that it would lose."""

    change: str
    peak: int
    fits: bool
    records_lost: int = 0


def _changes(config: TrainConfig) -> list[tuple[str, str, Any]]:
    """Settings that lower memory, where they are not at that value already: how a user gives them, key and value."""
    optim, rollout = config.optim, config.rollout
    values: dict[str, tuple[Any, bool]] = {
        "gradient_checkpointing": (True, not config.gradient_checkpointing),
        "dtype": ("bfloat16", config.dtype == "float32"),
        "load_in_4bit": (True, not config.load_in_4bit),
        "optim.max_tokens_per_pass": (optim.max_tokens_per_pass // 2, optim.max_tokens_per_pass > 1),
        "distill.chunk_rows": (64, config.distill.chunk_rows > 64),
        "rollout.weights": ("adapter", rollout.weights != "adapter"),
        "rollout.max_tokens_per_pass": (rollout.max_tokens_per_pass // 2, rollout.max_tokens_per_pass > 1),
        "rollout.max_new_tokens": (rollout.max_new_tokens // 2, rollout.max_new_tokens > 1),
        "lora.rank": (config.lora.rank // 2, config.lora.rank > 1),
    }
    notes = {"load_in_4bit": " (backend unsloth)"}
    return [
        (f"--set {key}={str(value).lower()}{notes.get(key, '')}", key, value)
        for key, (value, useful) in values.items()
        if useful
    ]


def remedies(
    rows: Sequence[RecordRow], shape: Shape, config: TrainConfig, predict: Predict, usable: int
) -> list[Remedy]:
    """Return what lowers the peak, alone, in order of effect; last the prompt cap at which everything fits."""
    now = predict(rows, config, shape).peak.total
    found = []
    for change, key, value in _changes(config):
        other = with_settings(config, {key: value})
        adapter = shape.adapter_parameters * other.lora.rank // shape.rank
        peak = predict(rows, other, replace(shape, adapter_parameters=adapter, rank=other.lora.rank)).peak.total
        if peak < now:
            found.append(Remedy(change, peak, peak <= usable))
    found.sort(key=lambda remedy: remedy.peak)
    cap = prompt_cap_that_fits(rows, shape, config, predict, usable)
    if cap:
        kept = [row for row in rows if row.teacher_prompt_tokens <= cap]
        peak = predict(kept, config, shape).peak.total
        found.append(Remedy(f"max_prompt_tokens={cap}", peak, True, len(rows) - len(kept)))
    return found


def prompt_cap_that_fits(
    rows: Sequence[RecordRow], shape: Shape, config: TrainConfig, predict: Predict, usable: int
) -> int | None:
    """Return the longest teacher prompt of the dataset up to which every step fits, or None if none does."""
    lengths = sorted({row.teacher_prompt_tokens for row in rows})

    def too_much(cap: int) -> bool:
        kept = [row for row in rows if row.teacher_prompt_tokens <= cap]
        return predict(kept, config, shape).peak.total > usable

    fitting = bisect_left(lengths, True, key=too_much)
    return lengths[fitting - 1] if fitting else None


def backend_note(config: TrainConfig) -> str | None:
    """Say what the plan does not know about the backend that would run."""
    unsloth = config.backend == "unsloth" or (config.backend == "auto" and has_package("unsloth"))
    return (
        "modelled is the transformers backend; unsloth moves checkpoints to host memory and fuses more"
        if unsloth
        else None
    )


def plan_of(
    rows: Sequence[RecordRow],
    shape: Shape,
    config: TrainConfig,
    sharing: Sharing,
    gpu: Gpu | None = None,
    rollout_tokens: int | None = None,
    utilisation: float = UTILISATION,
    fused: bool = True,
) -> dict[str, Any]:
    """Return the whole plan as a JSON-able document; memory in bytes, work in operations and hours.

    Args:
        rows: the training records that the profile takes, at least one.
        shape: of the model with the profile's adapter.
        sharing: how common prefixes are computed (`choose_sharing`).
        gpu: the card, or None: then only the need is reported.
        rollout_tokens: length of a rollout for operations and hours; by default the mean length of the experts' turns,
            at most the cap. Memory always assumes the cap.
        utilisation: share of the card's peak arithmetic that is reached.
        fused: has the gated delta rule (if the model has one) fused kernels?
    """
    mean = round(sum(row.reference_tokens for row in rows) / len(rows))
    rollout = min(rollout_tokens or max(1, mean), config.rollout.max_new_tokens)

    def predict(some: Sequence[RecordRow], settings: TrainConfig, sizes: Shape) -> Memory:
        return longest_step(some, sizes, settings, sharing, fused)

    memory = predict(rows, config, shape)
    work = run_work(rows, shape, config, sharing, rollout, gpu, utilisation)
    peak = memory.peak
    document: dict[str, Any] = {
        "profile": config.profile,
        "model": config.model,
        "records": len(rows),
        "parameters": shape.parameters,
        "adapter_parameters": shape.adapter_parameters,
        "kv_bytes_per_token": shape.kv_bytes(BYTES[config.dtype]),
        "memory": {"phases": [{**asdict(p), "total": p.total} for p in memory.phases], "peak": peak.name},
        "peak_bytes": peak.total,
        "rollout_tokens": rollout,
        "steps": work.steps,
        "flops": {**asdict(work.flops), "total": work.flops.total},
        "decode_bytes": work.decode_bytes,
        "hours": work.hours,
        "gpu": None,
        "remedies": [],
        "assumptions": assumptions(shape, config, sharing, rollout, rollout_tokens is not None, fused),
    }
    if gpu:
        fits = peak.total <= gpu.usable
        document["gpu"] = {**asdict(gpu), "usable_bytes": gpu.usable, "fits": fits, "margin": gpu.usable - peak.total}
        if work.hours:
            document["assumptions"].append(f"{utilisation:.0%} of the card's peak arithmetic is reached")
        document["assumptions"].append(f"{RESERVE:.0%} of the card is left to the CUDA context and fragmentation")
        if not fits:
            document["remedies"] = [asdict(r) for r in remedies(rows, shape, config, predict, gpu.usable)]
    return document


def assumptions(
    shape: Shape, config: TrainConfig, sharing: Sharing, rollout: int, given: bool, fused: bool
) -> list[str]:
    """Say what the numbers rest on."""
    found = [
        "the memory model was compared with measured peaks on a CPU only; nothing here has been measured on a GPU",
        f"memory: every rollout is as long as its cap, {config.rollout.max_new_tokens} tokens",
        f"operations and hours: {rollout} tokens in a rollout, "
        + ("as given" if given else "the mean of the experts' turns (at most the cap)"),
        "evaluation, the gate, checkpoints, rehearsal and start-up are in neither memory nor hours",
    ]
    if config.objective == "sft":
        found.append("objective is sft: it samples nothing and has no teacher, so those phases do not apply")
    elif config.distill.lambda_on_policy < 1:
        found.append("every record is taken to be sampled, although lambda_on_policy is below 1: an upper bound")
    if config.dtype == "float32":
        found.append("dtype is float32, and the cards' arithmetic is that of 16-bit tensors: hours are far too few")
    if sharing != "none":
        masks = ", masks are as large as allowed" if sharing == "packed" else ""
        found.append(f"prefixes that records share ({sharing}) are not counted as shared{masks}: upper bounds")
    if shape.delta_net:
        kernels = (
            "fused kernels (package flash-linear-attention)" if fused else "the reference code, without fused kernels"
        )
        found.append(f"linear attention runs with {kernels}")
    if config.fast_inference:
        found.append(
            "fast_inference: vLLM takes its share of the card (fast_inference_memory) from the start, which is not in "
            "the phases; hours are those of decoding without it"
        )
    if config.backend == "unsloth" or (config.backend == "auto" and has_package("unsloth")):
        found.append("modelled is the transformers backend; unsloth moves checkpoints to host memory and fuses more")
    return found
