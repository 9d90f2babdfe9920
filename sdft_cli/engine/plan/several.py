"""A run on several cards, planned: data parallel, and FSDP2 with the base's frozen weights sharded.

Data parallel: each card holds the whole model and computes a share of each step's turns (`spread.py`). All wait for the
largest share twice, behind the rollouts and behind the scoring; then the adapter's fp32 gradients are added up.

FSDP2: each card holds a part of every layer's frozen weights; the adapter is whole on each. A layer is gathered when a
pass or a step of decoding comes to it, and not ahead of time, so gathering is added to computing; all cards gather as
often as the one with the most passes. Rollouts are sampled with the adapter on, kernel by kernel: a merged copy or a
graph would need whole weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sdft_cli.config import TrainConfig, with_settings
from sdft_cli.engine.models.backend import Sharing
from sdft_cli.engine.objective.batches import Order
from sdft_cli.engine.plan.cards import Gpu
from sdft_cli.engine.plan.hours import beside_seconds
from sdft_cli.engine.plan.memory import Lengths, Memory, Phase, step_memory, weight_bytes
from sdft_cli.engine.plan.model_shape import BYTES, Shape
from sdft_cli.engine.plan.network import LINK_SHARE, Ring, ring_of
from sdft_cli.engine.plan.passes import Pass, scoring, training
from sdft_cli.engine.plan.plan import long_steps, worst
from sdft_cli.engine.plan.speed import Engine, Speed
from sdft_cli.engine.plan.spread import Turn, largest_part, spread
from sdft_cli.errors import UsageError
from sdft_cli.records import RecordRow

GATHERED = 3
"""Layers' worth of whole weights: the layer that runs, and twice that while one arrives and is put together."""
WORTH = 1.1
"""Several cards are advised where they are at least so many times as fast as one."""


@dataclass(frozen=True)
class Cards:
    """So many cards of one kind (None: not known) on so many machines, whose network has so many GB/s."""

    count: int
    nodes: int = 1
    card: Gpu | None = None
    network: float = 25.0


@dataclass(frozen=True)
class Run:
    """What is planned: records, model, settings; how it is computed, with so many tokens in a rollout."""

    rows: Sequence[RecordRow]
    heldout: Sequence[RecordRow]
    shape: Shape
    config: TrainConfig
    engine: Engine
    rollout: int
    utilisation: float

    def sharded(self) -> Run:
        """Return the run as FSDP2 has it: rollouts with the adapter on, no graphs."""
        config = with_settings(self.config, {"rollout.weights": "adapter"})
        return replace(self, config=config, engine=replace(self.engine, merged=False, graphs=False))


def check_several(config: TrainConfig) -> None:
    """Refuse to plan what several processes refuse to train; raises UsageError."""
    if config.backend == "unsloth" or config.fast_inference or config.load_in_4bit:
        raise UsageError("Several cards run the transformers backend only: leave out unsloth and its settings.")
    if config.lora.dropout > 0:
        raise UsageError("Several cards train without lora.dropout: add --set lora.dropout=0.")


def layer_bytes(shape: Shape, config: TrainConfig) -> tuple[int, int]:
    """Return the bytes of the matrices of all layers, and those of the largest layer."""
    size = BYTES[config.dtype]
    largest = max(sum(a * b for a, b in block.linears.values()) for block in shape.blocks)
    return shape.matrix_parameters * size, largest * size


def memory_of(run: Run, sharing: Sharing, count: int, sharded: bool) -> Memory:
    """Return what the longest steps take on the card with the most, in each phase."""
    shape, config = run.shape, run.config
    found: dict[tuple[Lengths, ...], Memory] = {}

    def longest(row: RecordRow) -> int:
        return config.longest_answer(row.reference_tokens)

    phases: list[Memory] = []
    for step in long_steps(run.rows, config):
        prompts, turns = spread(step, longest, count, sharing != "none")
        for some in ([turn.lengths for turn in share] for share in (*prompts, *turns) if share):
            key = tuple(some)
            if key not in found:
                found[key] = step_memory(some, shape, config, sharing, run.engine.fused)
                phases.append(found[key])
    memory = worst(phases)
    return shard(memory, shape, config, count) if sharded else memory


def shard(memory: Memory, shape: Shape, config: TrainConfig, count: int) -> Memory:
    """Return a memory in which frozen weights are sharded, and those whole that are gathered at a time.

    What is no layer of the trunk is counted as whole: embeddings and head are, a vision tower is not (an upper bound).
    """
    total = weight_bytes(shape, config)
    layers, largest = layer_bytes(shape, config)
    parts = {"frozen weights": -(-total // count), "gathered weights": total - layers + GATHERED * largest}
    return Memory(tuple(Phase(phase.name, {**phase.parts, **parts}) for phase in memory.phases))


@dataclass(frozen=True)
class Busy:
    """What a card computes in a phase: seconds, and how often it needs every layer."""

    seconds: float = 0.0
    passes: float = 0.0


def sampling(share: Sequence[Turn], speed: Speed, sharing: Sharing) -> Busy:
    """Return the rollouts of a share: the prompts' passes, and the steps of decoding."""
    if not share or speed.config.objective == "sft":
        return Busy()
    prompts, known = [turn.lengths.student for turn in share], [turn.known for turn in share]
    kind: Sharing = "packed" if sharing == "none" else sharing
    passes = list(scoring("prefill", prompts, not speed.engine.merged, kind, speed.config, known))
    read, steps = speed.decode_bytes([turn.lengths for turn in share])
    return Busy(_seconds(speed, passes) + speed.decode_seconds(read, steps), len(passes) + steps)


def scored(share: Sequence[Turn], speed: Speed, sharing: Sharing) -> Busy:
    """Return teacher, student, loss and backward of a share."""
    if not share:
        return Busy()
    config, known = speed.config, [turn.known for turn in share]
    passes = list(training([t.lengths.student + t.lengths.rollout for t in share], sharing, config, known))
    if config.objective != "sft":
        lengths = [t.lengths.teacher + t.lengths.rollout for t in share]
        passes += scoring("teacher", lengths, config.teacher.wears_adapter, sharing, config, known)
    return Busy(_seconds(speed, passes) + speed.head_seconds(sum(t.lengths.rollout for t in share)), len(passes))


def _seconds(speed: Speed, passes: Sequence[Pass]) -> float:
    return sum(speed.pass_seconds(one) for one in passes)


@dataclass(frozen=True)
class Step:
    """A step, or the sum of steps: seconds until the last card has sampled and scored, seconds that the network adds,
    bytes that a card sends, cards with a turn, and the largest share as a part of the step's tokens."""

    rollouts: float = 0.0
    scoring: float = 0.0
    network: float = 0.0
    sent: float = 0.0
    working: float = 0.0
    largest: float = 0.0

    def __add__(self, other: Step) -> Step:
        return Step(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    @property
    def seconds(self) -> float:
        return self.rollouts + self.scoring + self.network


def step_cost(rows: Sequence[RecordRow], run: Run, speed: Speed, sharing: Sharing, ring: Ring, sharded: bool) -> Step:
    """Return what a step of these records takes on the cards of a ring."""
    shared = sharing != "none"
    prompts, turns = spread(rows, lambda _: run.rollout, ring.count, shared)
    phases = [[sampling(s, speed, sharing) for s in prompts], [scored(s, speed, sharing) for s in turns]]
    sampled, done = (max(busy.seconds for busy in phase) for phase in phases)
    gradients, part = 4 * run.shape.adapter_parameters, (ring.count - 1) / ring.count
    network, sent = ring.all_reduce(gradients), 2 * part * gradients
    if sharded:
        layers = layer_bytes(run.shape, run.config)[0]
        each = sum(b.count for b in run.shape.blocks)
        gathering = each * ring.all_gather(layers / each)
        often = sum(max(busy.passes for busy in phase) for phase in phases)
        network, sent = network + often * gathering, sent + often * part * layers
    largest = largest_part(rows, lambda _: run.rollout, ring.count, shared)
    return Step(sampled, done, network, sent, sum(map(bool, turns)), largest)


def run_cost(run: Run, speed: Speed, sharing: Sharing, ring: Ring, sharded: bool) -> Step:
    """Return the sum over the steps that the run's seed draws."""
    order, total = Order(run.rows, run.config.optim, run.config.seed), Step()
    for number in range(1, run.config.optim.max_steps + 1):
        rows = [run.rows[i] for i in order.step(number)] * run.config.rollout.per_record
        total += step_cost(rows, run, speed, sharing, ring, sharded)
    return total


def rest_seconds(run: Run, speed: Speed, sharing: Sharing, count: int, slower: float) -> float:
    """Return all beside the steps: held-out evaluations and the gate shared out, checkpoints and the start by all.

    `slower`: what gathering makes of a second of passes and decoding.
    """
    beside = beside_seconds(run.rows, run.heldout, speed, sharing, run.rollout)
    part = largest_part(run.heldout or run.rows, lambda _: run.rollout, count, sharing != "none")
    return sum(value * (part * slower if name in ("gate", "heldout") else 1) for name, value in beside.items())


def several(run: Run, possible: Sequence[Sharing], cards: Cards) -> dict[str, Any]:
    """Return the plan of a run on several cards as a JSON-able document; sizes in bytes, hours of the whole run.

    Args:
        run: what is planned.
        possible: kinds of prefix sharing, as a run would try them; each way takes the first that fits.
        cards: how many, of which kind, where.
    """
    one = _way("one", run, possible, replace(cards, count=1, nodes=1), False)
    data = _way("data_parallel", run, possible, cards, False)
    ways = [one, data, _way("fsdp2", run.sharded(), possible, cards, True)]
    for way in ways:
        faster = way["hours"] and one["hours"]
        way["speedup"] = one["hours"]["total"] / way["hours"]["total"] if faster else None
    per_step = run.config.optim.turns_per_step * run.config.rollout.per_record
    take, why = advice(ways, cards, per_step)
    return {
        "count": cards.count,
        "nodes": cards.nodes,
        "turns_per_step": per_step,
        "ways": ways,
        "take": take,
        "why": why,
        "launch": launch(take, cards),
        "assumptions": told(cards, possible),
    }


def _way(name: str, run: Run, possible: Sequence[Sharing], cards: Cards, sharded: bool) -> dict[str, Any]:
    """Return memory, hours and traffic of one way to use the cards."""
    card = cards.card
    for sharing in possible:
        memory = memory_of(run, sharing, cards.count, sharded)
        fits = None if card is None else memory.peak.total <= card.usable
        if fits is not False:
            break
    found: dict[str, Any] = {
        "name": name,
        "cards": cards.count,
        "prefix_sharing": sharing,
        "memory": {"phases": [{**asdict(p), "total": p.total} for p in memory.phases], "peak": memory.peak.name},
        "peak_bytes": memory.peak.total,
        "fits": fits,
        **dict.fromkeys(("hours", "sent_bytes_per_step", "cards_with_work", "largest_share")),
    }
    if card is None or not (card.tflops and card.gb_per_s):
        return found
    ring = Ring(1, 1.0) if cards.count == 1 else ring_of(card, cards.count, cards.nodes, cards.network)
    if ring:
        speed = Speed(run.shape, run.config, card, run.engine, run.utilisation)
        found |= _costs(run, speed, sharing, ring, sharded)
    return found


def _costs(run: Run, speed: Speed, sharing: Sharing, ring: Ring, sharded: bool) -> dict[str, Any]:
    steps, total = run.config.optim.max_steps, run_cost(run, speed, sharing, ring, sharded)
    slower = total.seconds / (total.rollouts + total.scoring) if sharded else 1.0
    rest = rest_seconds(run, speed, sharing, ring.count, slower)
    seconds = {"rollouts": total.rollouts, "scoring": total.scoring, "network": total.network, "rest": rest}
    hours = {name: value / 3600 for name, value in seconds.items()}
    return {
        "hours": {**hours, "total": sum(hours.values())},
        "sent_bytes_per_step": total.sent / steps,
        "cards_with_work": total.working / steps,
        "largest_share": total.largest / steps,
    }


def advice(ways: Sequence[dict[str, Any]], cards: Cards, turns: int) -> tuple[str | None, str]:
    """Return which way to take (None: none fits), and why, in a sentence."""
    one, data, sharded = ways
    few = f"a step has {turns} turn(s), so {cards.count - turns} of {cards.count} cards have no work; "
    few = few if turns < cards.count else ""
    if data["fits"] is False:
        if sharded["fits"]:
            return "fsdp2", f"{few}the whole model does not fit on a card, and sharded over {cards.count} it does"
        return None, f"neither fits on {cards.count} cards: take more or larger ones, or lower what the plan names"
    if one["fits"] is not False and data["speedup"] is not None and data["speedup"] < WORTH:
        return "one", f"{few}{cards.count} cards are {data['speedup']:.2f} times as fast as one"
    return "data_parallel", f"{few}the whole model fits on each card, and only the adapter's gradients are sent"


def launch(take: str | None, cards: Cards) -> str | None:
    """Return what starts a way, up to the options of `sdft train`; HOST is the first machine, RANK counts them."""
    each, module = cards.count // cards.nodes, "-m sdft_cli train"
    if take is None:
        return None
    if take == "one":
        return "sdft train"
    if take == "fsdp2":
        where = f"--num_machines {cards.nodes} --machine_rank RANK --main_process_ip HOST --main_process_port 29500 "
        where += "--rdzv_backend c10d "
        more = where if cards.nodes > 1 else ""
        return f"accelerate launch --use_fsdp --fsdp_version 2 --num_processes {cards.count} {more}{module}"
    meet = f"--nnodes {cards.nodes} --rdzv-backend c10d --rdzv-endpoint HOST:29500 --rdzv-id sdft "
    return f"torchrun {meet if cards.nodes > 1 else ''}--nproc-per-node {each} {module}"


def told(cards: Cards, possible: Sequence[Sharing]) -> list[str]:
    """Say what the numbers rest on."""
    found = ["several cards: nothing of this was measured on several GPUs; FSDP2 is experimental"]
    if "none" not in possible:
        found.append(
            "several cards: turns of a session are taken to extend each other, others to share nothing; shared "
            "prefixes count once in a share, also for one card here"
        )
    if cards.card and cards.card.link_gb_per_s:
        network = f", or {cards.network:g} GB/s of each machine's network if that is less" if cards.nodes > 1 else ""
        found.append(
            f"several cards: rings that reach {LINK_SHARE:.0%} of {cards.card.link_gb_per_s:g} GB/s between cards"
            f"{network}"
        )
    found.append(
        f"FSDP2: the whole weights of {GATHERED} layers at a time, and of all that is no layer; every pass and every "
        "step of decoding gathers all layers and waits for them; rollouts with the adapter on, kernel by kernel"
    )
    return found
