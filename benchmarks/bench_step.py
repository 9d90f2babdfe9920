"""Whole optimiser steps against TRL's SDFTTrainer: rollouts, teacher, student, loss, backward, optimiser.

    python -m benchmarks.bench_step [SESSIONS] [--turns 8,1] [--prompt-tokens 512] [--rollout-tokens 64]
                                    [--repetitions 3] [--trl B,D] [--only SIDE] [--json FILE]

SESSIONS is a folder of sessions; without it the project's example sessions are joined to one (`turns.py`). A step takes
the last G of the chosen consecutive turns, for each G of `--turns`. The sides are this engine's variants
(`engine_side.py`) and TRL (`trl_side.py`, with every setting and its reason). Each measurement is a fresh process that
runs a short step first; the sides take turns. TRL's sizes of batches are those of the fastest step of a pilot: all
turns decoded together and 1, 2 or 4 scored at a time, or a quarter of them decoded together, which pads less. Memory
is the peak of the measured step beyond the loaded model.
"""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.engine_side import VARIANTS
from benchmarks.side_by_side import Job, child_or_main, run_child, spread, take_turns
from benchmarks.step_options import TRL, options, prepared_job, save

MODULE = "benchmarks.bench_step"
PILOT_BATCHES = (1, 2, 4)


def child(job: Job) -> dict[str, Any]:
    """Measure one side."""
    if job["side"] == TRL:
        from benchmarks import trl_side

        return trl_side.step(job)
    from benchmarks import engine_side

    return engine_side.step(job)


def settings_to_try(turns: int) -> list[tuple[int, int]]:
    """Return (scored at a time, decoded at a time) for TRL: all decoded together, and with less padding."""
    together = [(batch, turns) for batch in PILOT_BATCHES if turns % batch == 0]
    return [*together, *([(1, turns // 4)] if turns % 4 == 0 else [])]


def pilot(shared: Job) -> list[dict[str, Any]]:
    """Return TRL's seconds of one step for each setting."""
    found = []
    for batch, decoded in settings_to_try(shared["turns"]):
        seconds = run_child(MODULE, {**shared, "side": TRL, "batch": batch, "decoded": decoded})["seconds"]
        found.append({"batch": batch, "decoded": decoded, "seconds": seconds})
        print(f"  pilot, trl decodes {decoded}, scores {batch} at a time: {seconds:.2f} s", file=sys.stderr, flush=True)
    return found


def summary(job: Job, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarise the repetitions of a side."""
    return {
        "turns_per_second": spread([job["turns"] / r["seconds"] for r in runs]),
        "seconds": spread([r["seconds"] for r in runs]),
        "rollout_seconds": spread([r["rollout_seconds"] for r in runs]),
        "peak_MB": spread([r["peak_MB"] for r in runs]),
        "kl_per_token": spread([r["kl_per_token"] for r in runs]),
        "student_prompt_tokens": runs[0]["student_prompt_tokens"],
        "teacher_prompt_tokens": runs[0]["teacher_prompt_tokens"],
        "runs": runs,
    }


def compare(shared: Job, sides: list[str], repetitions: int, trl: tuple[int, int] | None) -> dict[str, Any]:
    """Measure the sides on one number of turns, print a table, and return it.

    `trl` is how many turns TRL scores and decodes at a time; None: a pilot chooses.
    """
    jobs: dict[str, Job] = {side: {**shared, "side": side} for side in sides}
    result: dict[str, Any] = {"turns": shared["turns"]}
    if TRL in jobs:
        choices = settings_to_try(shared["turns"])
        result["pilot"] = pilot(shared) if trl is None and len(choices) > 1 else []
        best = min(result["pilot"], key=lambda p: p["seconds"], default=None)
        result["trl_batch"], result["trl_decoded"] = (best["batch"], best["decoded"]) if best else trl or choices[0]
        jobs[TRL] |= {"batch": result["trl_batch"], "decoded": result["trl_decoded"]}
    found = take_turns(MODULE, jobs, repetitions)
    result["sides"] = {side: summary(jobs[side], runs) for side, runs in found.items()}
    report(result)
    return result


def report(result: dict[str, Any]) -> None:
    """Print a table of the sides, and add the ratios to TRL."""
    sides = result["sides"]
    prompts = {side: (x["student_prompt_tokens"], x["teacher_prompt_tokens"]) for side, x in sides.items()}
    trl = f"; trl decodes {result['trl_decoded']}, scores {result['trl_batch']} at a time" if TRL in sides else ""
    print(f"\n{result['turns']} turn(s) a step{trl}")
    for side, (student, teacher) in prompts.items():
        print(
            f"  {side:<20} prompts {min(student)} to {max(student)} tokens, sum {sum(student)}; "
            f"teacher's {min(teacher)} to {max(teacher)}, sum {sum(teacher)}"
        )
    print(f"  {'':<20} {'turns/s min':>11} {'median':>8} {'max':>8} {'s a step':>9} {'rollouts':>9} {'peak MB':>8}")
    for side, x in sides.items():
        rate = x["turns_per_second"]
        print(
            f"  {side:<20} {rate['min']:11.4f} {rate['median']:8.4f} {rate['max']:8.4f} {x['seconds']['median']:9.2f} "
            f"{x['rollout_seconds']['median']:9.2f} {x['peak_MB']['median']:8.0f}"
        )
    for side, x in sides.items():
        if TRL in sides and side != TRL:
            x["speed_over_trl"] = x["turns_per_second"]["median"] / sides[TRL]["turns_per_second"]["median"]
            x["memory_over_trl"] = x["peak_MB"]["median"] / sides[TRL]["peak_MB"]["median"]
            print(f"  {side}: {x['speed_over_trl']:.2f} times TRL's speed, {x['memory_over_trl']:.2f} of its memory")


def numbers(text: str) -> tuple[int, ...]:
    """Read numbers with commas between them."""
    return tuple(int(number) for number in text.split(","))


def main() -> None:
    """Run the benchmark."""
    if child_or_main(sys.argv[1:], child):
        return
    parser = options(__doc__)
    parser.add_argument(
        "--turns",
        type=numbers,
        default=(8, 1),
        metavar="G,...",
        help="turns of an optimiser step, one measurement for each number",
    )
    parser.add_argument(
        "--trl", type=numbers, metavar="B,D", help="TRL scores B and decodes D turns at a time, without a pilot"
    )
    parser.set_defaults(prompt_tokens=512)
    arguments = parser.parse_args()
    counts = arguments.turns
    sides = arguments.only or [*VARIANTS, TRL]
    with prepared_job(arguments, max(counts)) as (shared, settings):
        steps = [
            compare({**shared, "turns": count}, sides, arguments.repetitions, (1, 1) if count == 1 else arguments.trl)
            for count in counts
        ]
    save(arguments, {**settings, "steps": steps})


if __name__ == "__main__":
    main()
