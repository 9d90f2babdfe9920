"""A run on 8 and on 64 GPUs, simulated from the step parts of one process: where does it stop scaling, and why?

    python -m benchmarks.simulate_nodes --run runs/mine --data data/mine
    python -m benchmarks.simulate_nodes --plan h100-80gb --data data/mine --set optim.turns_per_step=8

`--run` takes what one process measured: the seconds of each phase of each step (`metrics.jsonl`), and the prompts as
the dataset has them. Turns are divided over the ranks by the rule of the run itself (`engine/parallel/share.py`) on
their token ids. How long each rollout was is not in a run's files: lengths are drawn from those of `samples.jsonl` and
scaled to the step's sum. `--plan CARD` takes the parts that `sdft plan` assumes for a card instead, and lengths.

`--seconds rollout=40 backward=12` gives step parts by hand. Network and stragglers are parameters. What comes out is a
simulation; nothing here was run on several GPUs.
"""

from __future__ import annotations

import argparse
import json
import random
import struct
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.nodes import DIVISION, Cluster, Division, MeasuredStep, scale, sentence, table
from sdft_cli.config import TrainConfig, load_train_config
from sdft_cli.engine.objective.batches import Order
from sdft_cli.engine.objective.looks import Looks
from sdft_cli.engine.objective.schedules import flags_at
from sdft_cli.engine.parallel.share import shares, token_costs
from sdft_cli.engine.passes.padded import padded_passes
from sdft_cli.records import Record, RecordRow, read_dataset

COUNTS = (1, 2, 4, 8, 16, 32, 64)


def parts_of(costs: Sequence[float], whole: float) -> list[float]:
    """Return the costs of all ranks as parts of what one process has; what divides by nothing is whole on each."""
    return [cost / whole if whole else 1.0 for cost in costs]


def decoding_steps(prompts: Sequence[int], answers: Sequence[int], config: TrainConfig) -> int:
    """Return the steps of decoding: of those that go together, as many as the longest answer has tokens."""
    lengths = [prompt + config.rollout.max_new_tokens for prompt in prompts]
    batches = padded_passes(lengths, config.rollout.max_tokens_per_pass) if lengths else []
    return sum(max(answers[i] for i in batch) for batch in batches)


def divided(
    prompts: Sequence[list[int]],
    answers: Sequence[int],
    sampled: Sequence[bool],
    shared: bool,
    config: TrainConfig,
    count: int,
) -> Division:
    """Return how a step divides over so many ranks: by prompts while it samples, by trajectories while it scores.

    Args:
        prompts: token ids of each turn.
        answers: tokens of each answer; what they are does not matter, but that no two begin alike.
        sampled: was it a rollout?
        shared: prefixes are computed once in a share.
    """

    def tokens(rows: Sequence[list[int]]) -> int:
        return sum(token_costs(sorted(rows), shared)[1])

    own = [i for i, flag in enumerate(sampled) if flag]
    places = shares([prompts[i] for i in own], count, shared) if own else [[] for _ in range(count)]
    asked = [[own[i] for i in share] for share in places]
    steps = [decoding_steps([len(prompts[i]) for i in s], [answers[i] for i in s], config) for s in (own, *asked)]
    rows = [[*prompt, *[-1 - i] * size] for i, (prompt, size) in enumerate(zip(prompts, answers, strict=True))]
    turns = [tokens([rows[i] for i in share]) for share in shares(rows, count, shared)]
    sampling = [tokens([prompts[i] for i in s]) + sum(answers[i] for i in s) for s in (own, *asked)]
    return Division(parts_of(sampling[1:], sampling[0]), parts_of(steps[1:], steps[0]), parts_of(turns, tokens(rows)))


def answer_lengths(
    references: Sequence[int], sampled: Sequence[bool], total: int, seen: Sequence[int], seed: str
) -> list[int]:
    """Return the lengths of a step's answers: the experts' as they are, rollouts drawn from those that were `seen`.

    They are scaled to what the step's `total` leaves for them, at least one token each.
    """
    own = sum(sampled)
    rest = total - sum(n for n, flag in zip(references, sampled, strict=True) if not flag)
    draw = random.Random(seed)
    drawn = [draw.choice(seen) if seen else 1 for _ in range(own)]
    scaled = iter([max(1, round(rest * n / sum(drawn))) for n in drawn])
    return [next(scaled) if flag else n for n, flag in zip(references, sampled, strict=True)]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def adapter_numbers(run: Path) -> int:
    """Return how many numbers the adapter of a run has, from the head of its file."""
    with (run / "adapter" / "adapter_model.safetensors").open("rb") as file:
        head = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    starts = [value["data_offsets"] for name, value in head.items() if name != "__metadata__"]
    return int(sum(stop - start for start, stop in starts)) // 4


def measured_steps(run: Path, data: Path) -> tuple[list[MeasuredStep], float]:
    """Return the steps of a run of one process but the first, which warms up, and the bytes of its gradients."""
    from sdft_cli.engine.models.names import resolve_model
    from sdft_cli.prompts.chat import open_prompts

    config = TrainConfig(**json.loads((run / "config.json").read_text(encoding="utf-8")))
    shared = json.loads((run / "run.json").read_text(encoding="utf-8"))["prefix_sharing"] != "none"
    dataset = read_dataset(data)
    prompts = open_prompts(resolve_model(config.model), dataset.manifest, config.revision)
    records, metrics = list(dataset.train), lines_of(run / "metrics.jsonl")
    if any("processes" in line["phase_seconds"] for line in metrics):
        raise SystemExit(f"{run} is a run of several processes: give one of a single process.")
    order = Order([r.row for r in records], config.optim, config.seed)
    looks = Looks(config, order)
    seen = [len(line["tokens"]) for line in lines_of(run / "samples.jsonl") if line["on_policy"]]

    def of(line: dict[str, Any]) -> MeasuredStep:
        chosen = [records[i] for i in order.step(line["step"])]
        flags = flags_at(config, line["step"], looks.first(line["step"]), len(chosen))
        return measured(line, chosen, flags, [prompts.student_ids(r) for r in chosen], shared, config, seen)

    return [of(line) for line in metrics[1:]], 4.0 * adapter_numbers(run)


def measured(
    line: dict[str, Any],
    records: Sequence[Record],
    flags: Sequence[bool],
    ids: Sequence[list[int]],
    shared: bool,
    config: TrainConfig,
    seen: Sequence[int],
) -> MeasuredStep:
    """Return the step of a line of `metrics.jsonl`; a record that was sampled several times is as many turns."""
    times = [config.rollout.per_record if own else 1 for own in flags]
    places = [i for i, n in enumerate(times) for _ in range(n)]
    sampled = [flags[i] for i in places]
    references = [records[i].row.reference_tokens for i in places]
    lengths = answer_lengths(references, sampled, line["rollout_tokens"], seen, f"{config.seed}:{line['step']}")
    divide = partial(divided, [ids[i] for i in places], lengths, sampled, shared, config)
    return MeasuredStep(line["phase_seconds"], divide, len(places), 4.0 * sum(lengths))


def planned_steps(asked: argparse.Namespace) -> tuple[list[MeasuredStep], float]:
    """Return the steps of a run with the parts that `sdft plan` assumes for one card, and the bytes of gradients."""
    from sdft_cli.engine.models.load import config_of
    from sdft_cli.engine.plan.assumed import assume
    from sdft_cli.engine.plan.cards import find_gpu
    from sdft_cli.engine.plan.model_shape import possible_sharing, read_shape
    from sdft_cli.engine.plan.plan import choose_sharing
    from sdft_cli.engine.plan.speed import Speed

    flags = {"backend": "transformers", **({"model": asked.model} if asked.model else {})}
    config = load_train_config(asked.profile, asked.set, flags)
    every = [record.row for record in read_dataset(Path(asked.data)).train]
    rows = [row for row in every if row.teacher_prompt_tokens <= config.max_prompt_tokens]
    card, shape = find_gpu(asked.plan), read_shape(config, config.model)
    assumed = assume(config, shape, config_of(config.model, config.revision).model_type, card, True, None)
    kinds = possible_sharing(shape, config)
    sharing = choose_sharing(kinds, rows, shape, config, card.usable, assumed.engine.fused)
    speed = Speed(shape, config, card, assumed.engine)
    rollout = round(sum(row.reference_tokens for row in rows) / len(rows))
    order = Order(rows, config.optim, config.seed)
    numbers = range(1, min(asked.steps, config.optim.max_steps) + 1)
    steps = [planned([rows[i] for i in order.step(n)], speed, sharing, rollout) for n in numbers]
    return steps, 4.0 * shape.adapter_parameters


def planned(chosen: Sequence[RecordRow], speed: Any, sharing: Any, rollout: int) -> MeasuredStep:
    """Return a step with the seconds that the plan has for one card, divided by lengths."""
    from sdft_cli.engine.plan.several import sampling, scored
    from sdft_cli.engine.plan.spread import Turn, spread, tokens_of

    rows = list(chosen) * speed.config.rollout.per_record
    shared = sharing != "none"

    def decoding(share: Sequence[Turn]) -> float:
        return float(speed.decode_bytes([turn.lengths for turn in share])[1])

    def read(share: Sequence[Turn]) -> int:
        return sum(turn.lengths.student - turn.known for turn in share)

    (prompts,), (turns,) = spread(rows, lambda _: rollout, 1, shared)
    decode = speed.decode_seconds(*speed.decode_bytes([turn.lengths for turn in prompts]))
    sampled = sampling(prompts, speed, sharing).seconds
    seconds = {"prefill": sampled - decode, "decode": decode, "scoring": scored(turns, speed, sharing).seconds}

    def divide(count: int) -> Division:
        asked, done = spread(rows, lambda _: rollout, count, shared)
        return Division(
            parts_of(list(map(read, asked)), read(prompts)),
            parts_of(list(map(decoding, asked)), decoding(prompts)),
            parts_of(list(map(tokens_of, done)), tokens_of(turns)),
        )

    return MeasuredStep(seconds, divide, len(rows), 4.0 * rollout * len(rows))


def given(words: Sequence[str]) -> dict[str, float]:
    """Return seconds by phase, from words as `rollout=3`."""
    known = {*DIVISION, "rollout", "encode", "optimizer"}
    try:
        found = {name: float(value) for name, value in (word.split("=") for word in words)}
    except ValueError:
        found = {"": -1.0}
    if not found.keys() <= known or min(found.values(), default=0.0) < 0:
        raise SystemExit(f"--seconds takes NAME=SECONDS, with names of {', '.join(sorted(known))}.")
    return found


def told(steps: Sequence[MeasuredStep], gradients: float, asked: argparse.Namespace) -> str:
    """Say what is simulated."""
    names = dict.fromkeys(name for step in steps for name in step.seconds)
    means = {name: sum(step.seconds.get(name, 0.0) for step in steps) / len(steps) for name in names}
    parts = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
    return (
        f"{len(steps)} steps of {sum(step.turns for step in steps) / len(steps):g} turns, one process, seconds a step: "
        f"{parts}\n{gradients / 1e6:,.1f} MB of gradients; {asked.per_node} GPUs in a machine at {asked.link:g} GB/s, "
        f"{asked.network:g} GB/s between machines; stragglers {asked.stragglers:g}, seed {asked.seed}; simulated"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and the sentence."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", help="the folder of a run of one process")
    parser.add_argument("--plan", metavar="CARD", help="the parts that sdft plan assumes for a card, instead of a run")
    parser.add_argument("--data", required=True, help="the dataset")
    parser.add_argument("--seconds", metavar="NAME=SECONDS", nargs="+", help="of every step, instead of those")
    parser.add_argument("--gpus", type=int, nargs="+", default=list(COUNTS))
    parser.add_argument("--rollout", choices=["decoding", "tokens"], default="decoding", help="of --run: rollouts take "
                        "as long as their steps of decoding (a GPU), or as their tokens (a CPU)")  # fmt: skip
    parser.add_argument("--per-node", type=int, default=8, help="GPUs in a machine")
    parser.add_argument("--link", type=float, default=300.0, help="GB/s between GPUs of a machine")
    parser.add_argument("--network", type=float, default=17.5, help="GB/s between machines")
    parser.add_argument("--hop", type=float, default=5.0, help="microseconds of a hop in a machine")
    parser.add_argument("--network-hop", type=float, default=20.0, help="microseconds of a hop between machines")
    parser.add_argument("--stragglers", type=float, default=0.05, help="a rank is exp(this x |z|) slower in a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=100, help="of --plan: so many steps of the run")
    parser.add_argument("--profile", default="qwen3.5-9b-64k", help="of --plan")
    parser.add_argument("--model", help="of --plan: instead of the profile's")
    parser.add_argument("--set", action="append", default=[], help="of --plan: settings")
    asked = parser.parse_args(arguments)
    if (asked.run is None) == (asked.plan is None):
        parser.error("give --run RUN, or --plan CARD")
    steps, gradients = measured_steps(Path(asked.run), Path(asked.data)) if asked.run else planned_steps(asked)
    if asked.seconds:
        steps = [replace(step, seconds=given(asked.seconds)) for step in steps]
    cluster = Cluster(asked.per_node, asked.link * 1e9, asked.network * 1e9, asked.hop / 1e6, asked.network_hop / 1e6)
    rollout = "decoding" if asked.rollout == "decoding" else "sampling"
    counts = sorted({1, *asked.gpus})
    scales = [scale(steps, n, cluster.ring(n), gradients, rollout, asked.stragglers, asked.seed) for n in counts]
    print(f"{told(steps, gradients, asked)}\n\n{table(scales)}\n\n{sentence(scales)}")


if __name__ == "__main__":
    main()
