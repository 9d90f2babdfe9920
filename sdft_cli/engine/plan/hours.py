"""The work of a whole run and the hours it takes: its steps, and all that comes before and between them.

Steps are those that the run's seed draws. Beside them: loading and the checks at the start, the gate, the rehearsal,
held-out evaluations, checkpoints. Encoding, metrics and the update itself are left out, they take little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from sdft_cli.config import TrainConfig
from sdft_cli.engine.models.backend import Sharing
from sdft_cli.engine.objective.batches import Order
from sdft_cli.engine.plan.cards import Gpu
from sdft_cli.engine.plan.flops import StepFlops, decode_flops, head_flops
from sdft_cli.engine.plan.memory import Lengths, weight_bytes
from sdft_cli.engine.plan.model_shape import Shape
from sdft_cli.engine.plan.passes import Pass, flops_of, scoring, step_passes
from sdft_cli.engine.plan.speed import Engine, Speed, work_seconds
from sdft_cli.records import RecordRow

DISK = 1e9
"""Bytes per second of the disk, read or written; an assumption."""
CHECKS = 60
"""Small passes of the checks at the start: decoding, output head, prefix sharing, reach."""
SMALL = 32
"""Tokens of such a pass."""


def lengths_of(rows: Sequence[RecordRow], rollout: int) -> list[Lengths]:
    """Return the records' lengths with an assumed trajectory of `rollout` tokens."""
    return [Lengths(row.prompt_tokens, row.teacher_prompt_tokens, rollout) for row in rows]


def longest_lengths(rows: Sequence[RecordRow], config: TrainConfig) -> list[Lengths]:
    """Return the records' lengths with the longest trajectory that each may have."""
    return [Lengths(r.prompt_tokens, r.teacher_prompt_tokens, config.longest_answer(r.reference_tokens)) for r in rows]


def step_flops(
    step: Sequence[Lengths], shape: Shape, config: TrainConfig, sharing: Sharing, merged: bool = False
) -> StepFlops:
    """Return the operations of one step, with the passes that the trainer would make of it."""
    beside = StepFlops(
        decode=sum(decode_flops(shape, x.student, x.rollout, not merged) for x in step),
        heads=3 * head_flops(shape, sum(x.rollout for x in step)),
    )
    return flops_of(step_passes(step, config, sharing, merged), shape) + beside


@dataclass(frozen=True)
class RunWork:
    """The work of a whole run, and the hours it takes on a card (None: no card, or its speed is not known).

    `flops`, `decode_bytes` (read) and `decode_steps` are those of the training steps; `hours` has a value for each of
    their phases, then `gate`, `heldout`, `checkpoints` and `start`, and the `total`.
    """

    steps: int
    flops: StepFlops
    decode_bytes: float
    decode_steps: float
    hours: Mapping[str, float] | None


def run_work(
    rows: Sequence[RecordRow],
    heldout: Sequence[RecordRow],
    shape: Shape,
    config: TrainConfig,
    sharing: Sharing,
    engine: Engine,
    rollout: int,
    gpu: Gpu | None,
    utilisation: float,
) -> RunWork:
    """Return the work of the run, over the very records that its seed will draw, with `rollout` tokens each.

    Args:
        rows, heldout: training and validation records.
        engine: how it would be computed.
        gpu: the card; one without a known speed is as none.
        utilisation: share of its arithmetic that large products reach.
    """
    card = gpu if gpu and gpu.tflops and gpu.gb_per_s else Gpu("none", 0, 1.0, 1.0)
    speed = Speed(shape, config, card, engine, utilisation)
    lengths, order = lengths_of(rows, rollout), Order(rows, config.optim, config.seed)
    flops, read, decoded = StepFlops(), 0.0, 0.0
    seconds = dict.fromkeys(asdict(flops), 0.0)
    for number in range(1, config.optim.max_steps + 1):
        step = [lengths[i] for i in order.step(number)] * config.rollout.per_record
        flops += step_flops(step, shape, config, sharing, engine.merged)
        found, of_step = _step_seconds(step, speed, sharing)
        read, decoded = read + of_step[0], decoded + of_step[1]
        seconds = {name: value + found.get(name, 0.0) for name, value in seconds.items()}
    hours = None
    if card is gpu:
        seconds |= beside_seconds(rows, heldout, speed, sharing, rollout)
        hours = {name: value / 3600 for name, value in seconds.items()}
        hours["total"] = sum(hours.values())
    return RunWork(config.optim.max_steps, flops, read, decoded, hours)


def _step_seconds(
    step: Sequence[Lengths], speed: Speed, sharing: Sharing
) -> tuple[dict[str, float], tuple[float, float]]:
    """Return the seconds of a step by phase; and the bytes that decoding reads and its steps."""
    decoding = speed.decode_bytes(step)
    seconds = work_seconds(speed, step_passes(step, speed.config, sharing, speed.engine.merged))
    seconds["decode"] = speed.decode_seconds(*decoding)
    seconds["heads"] = speed.head_seconds(sum(x.rollout for x in step))
    return seconds, decoding


def beside_seconds(
    rows: Sequence[RecordRow], heldout: Sequence[RecordRow], speed: Speed, sharing: Sharing, rollout: int
) -> dict[str, float]:
    """Return the seconds of what a run does beside its steps, by name."""
    config = speed.config
    times = evaluations(config) if heldout else 0
    asked = config.gate.action != "off" and config.objective != "sft"
    gate = gate_seconds(heldout or rows, speed, sharing, rollout) if asked else 0.0
    saves = -(-config.optim.max_steps // config.checkpoint.every)
    state = 12.0 * speed.shape.adapter_parameters
    return {
        "gate": gate,
        "heldout": times * heldout_seconds(heldout, speed, sharing, rollout) if times else 0.0,
        "checkpoints": saves * 2 * state / DISK,  # written, and read back
        "start": start_seconds(rows, speed, sharing),
    }


def evaluations(config: TrainConfig) -> int:
    """Return how often a run evaluates: before step 1, every so many steps, and at its end."""
    every = config.heldout.every
    return 0 if every is None else 1 + -(-config.optim.max_steps // every)


def _share(rows: Sequence[RecordRow], count: int) -> float:
    """Return the share of records that is chosen: all of them are counted, and stand for so many."""
    return min(count, len(rows)) / len(rows)


def heldout_seconds(rows: Sequence[RecordRow], speed: Speed, sharing: Sharing, rollout: int) -> float:
    """Return one evaluation: an answer of each record decoded, scored by student and teacher, and the expert's turn."""
    settings = speed.config.heldout
    every, weight = list(rows), _share(rows, settings.records)
    new = min(rollout, settings.max_new_tokens)
    own = speed.config.teacher.wears_adapter
    passes = [
        *_prompts([r.prompt_tokens for r in every], speed, sharing, not speed.engine.merged),
        *scoring("student", [r.prompt_tokens + new for r in every], True, sharing, speed.config),
        *scoring("student", [r.prompt_tokens + r.reference_tokens for r in every], True, sharing, speed.config),
        *scoring("teacher", [r.teacher_prompt_tokens + new for r in every], own, sharing, speed.config),
    ]
    decoding = speed.decode_bytes(lengths_of(every, new))
    heads = speed.head_seconds(sum(new + r.reference_tokens for r in every)) / 3
    return weight * (sum(work_seconds(speed, passes).values()) + speed.decode_seconds(*decoding) + 2 * heads)


def gate_seconds(rows: Sequence[RecordRow], speed: Speed, sharing: Sharing, rollout: int) -> float:
    """Return the gate: two answers of each record decoded by the base, the expert's turn scored under three prompts."""
    settings = speed.config.gate
    every, weight = list(rows), _share(rows, settings.records)
    new = min(rollout, settings.max_new_tokens)
    base = replace(speed, engine=replace(speed.engine, merged=True))
    prompts = [r.prompt_tokens for r in every] + [r.teacher_prompt_tokens for r in every]
    shown = [*prompts, *(r.teacher_prompt_tokens for r in every)]
    scored = [n + every[i % len(every)].reference_tokens for i, n in enumerate(shown)]
    passes = [
        *_prompts(prompts, base, sharing, False),
        *scoring("student", scored, False, sharing, speed.config),
    ]
    decoding = base.decode_bytes([Lengths(n, n, new) for n in prompts])
    heads = base.head_seconds(3 * sum(r.reference_tokens for r in every)) / 3
    return weight * (sum(work_seconds(base, passes).values()) + base.decode_seconds(*decoding) + heads)


def start_seconds(rows: Sequence[RecordRow], speed: Speed, sharing: Sharing) -> float:
    """Return loading the weights from disk, the small passes of the checks, and the rehearsal of the longest step."""
    config = speed.config
    checks = CHECKS * speed.pass_seconds(Pass("student", SMALL, SMALL * (SMALL + 1) / 2, True))
    rehearsal = 0.0
    if config.rehearse:
        longest = max(rows, key=lambda r: r.teacher_prompt_tokens + config.longest_answer(r.reference_tokens))
        step = longest_lengths([longest] * config.optim.turns_per_step, config)
        seconds, _ = _step_seconds(step, speed, sharing)
        rehearsal = sum(value for name, value in seconds.items() if name != "decode")
    return weight_bytes(speed.shape, config) / DISK + checks + rehearsal


def _prompts(lengths: Sequence[int], speed: Speed, sharing: Sharing, adapter: bool) -> list[Pass]:
    return list(scoring("prefill", lengths, adapter, "packed" if sharing == "none" else sharing, speed.config))
