"""Whole optimiser steps against TRL's SDFTTrainer: rollouts, teacher, student, loss, backward, optimiser.

    python -m benchmarks.bench_step [SESSIONS] [--turns 8,1] [--prompt-tokens 1024] [--rollout-tokens 64]
                                    [--repetitions 3] [--trl-batch auto] [--only SIDE] [--json FILE]

SESSIONS is a folder of sessions; without it the project's example sessions are joined to one (`turns.py`). A step takes
the last G of the chosen consecutive turns, for each G of `--turns`. The sides are this engine's variants
(`engine_side.py`) and TRL (`trl_side.py`, with every setting and its reason). Each measurement is a fresh process that
runs a short step first; the sides take turns. TRL's micro-batch is chosen by a pilot on at most 4 turns: the fastest of
1, 2 and 4 turns at a time. Memory is the peak of the measured step beyond the loaded model.
"""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.engine_side import VARIANTS
from benchmarks.side_by_side import Job, child_or_main, run_child, spread, take_turns
from benchmarks.step_options import TRL, options, prepared_job, save

MODULE = "benchmarks.bench_step"
PILOT_TURNS, PILOT_BATCHES = 4, (1, 2, 4)


def child(job: Job) -> dict[str, Any]:
    """Measure one side."""
    if job["side"] == TRL:
        from benchmarks import trl_side

        return trl_side.step(job)
    from benchmarks import engine_side

    return engine_side.step(job)


def pilot(shared: Job) -> dict[int, float]:
    """Return TRL's seconds per step by the size of its micro-batch, on few turns."""
    turns = min(PILOT_TURNS, shared["turns"])
    found = {}
    for batch in (b for b in PILOT_BATCHES if turns % b == 0 and shared["turns"] % b == 0):
        found[batch] = run_child(MODULE, {**shared, "turns": turns, "side": TRL, "batch": batch})["seconds"]
        print(
            f"  pilot on {turns} turn(s), trl with {batch} at a time: {found[batch]:.2f} s", file=sys.stderr, flush=True
        )
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


def compare(shared: Job, sides: list[str], repetitions: int, trl_batch: str) -> dict[str, Any]:
    """Measure the sides on one number of turns, print a table, and return it."""
    jobs: dict[str, Job] = {side: {**shared, "side": side} for side in sides}
    result: dict[str, Any] = {"turns": shared["turns"]}
    if TRL in jobs:
        result["pilot_seconds_by_batch"] = pilot(shared) if trl_batch == "auto" else {}
        times = result["pilot_seconds_by_batch"]
        jobs[TRL]["batch"] = min(times, key=times.__getitem__) if times else int(trl_batch)
        result["trl_batch"] = jobs[TRL]["batch"]
    found = take_turns(MODULE, jobs, repetitions)
    result["sides"] = {side: summary(jobs[side], runs) for side, runs in found.items()}
    report(result)
    return result


def report(result: dict[str, Any]) -> None:
    """Print a table of the sides, and add the ratios to TRL."""
    sides = result["sides"]
    prompts = {side: (x["student_prompt_tokens"], x["teacher_prompt_tokens"]) for side, x in sides.items()}
    print(f"\n{result['turns']} turn(s) a step" + (f", trl {result['trl_batch']} at a time" if TRL in sides else ""))
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


def main() -> None:
    """Run the benchmark."""
    if child_or_main(sys.argv[1:], child):
        return
    parser = options(__doc__)
    parser.add_argument("--turns", default="8,1", help="turns of an optimiser step, one measurement for each number")
    parser.add_argument("--trl-batch", default="auto", help="turns that TRL scores at a time; auto: a pilot chooses")
    arguments = parser.parse_args()
    counts = [int(number) for number in arguments.turns.split(",")]
    sides = arguments.only or [*VARIANTS, TRL]
    with prepared_job(arguments, max(counts)) as (shared, settings):
        steps = [
            compare({**shared, "turns": count}, sides, arguments.repetitions, arguments.trl_batch) for count in counts
        ]
    save(arguments, {**settings, "steps": steps})


if __name__ == "__main__":
    main()
