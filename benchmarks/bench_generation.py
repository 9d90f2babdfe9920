"""Rollouts against TRL's: tokens per second of a step's rollouts, decoded together, all of the same forced length.

    python -m benchmarks.bench_generation [SESSIONS] [--turns 16] [--prompt-tokens 1400] [--rollout-tokens 64]
                                          [--repetitions 3] [--only SIDE] [--json FILE]

The prompts are those of consecutive turns of one session (`turns.py`), the longest of at most so many tokens; those of
the example sessions have about 1,024 on average. This engine samples from a merged copy of the
weights (merging is part of the time); with `packed`, common prefixes are prefilled once. TRL samples as its trainer
does: one left-padded batch, `generate` with the adapter on (`trl_side.py`). Each measurement is a fresh process that
first samples from short prompts; the sides take turns. Memory is the peak beyond the loaded model.
"""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.engine_side import VARIANTS
from benchmarks.side_by_side import Job, child_or_main, spread, take_turns
from benchmarks.step_options import TRL, options, prepared_job, save

MODULE = "benchmarks.bench_generation"


def child(job: Job) -> dict[str, Any]:
    """Measure one side."""
    if job["side"] == TRL:
        from benchmarks import trl_side

        return trl_side.generation(job)
    from benchmarks import engine_side

    return engine_side.generation(job)


def summary(job: Job, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarise the repetitions of a side."""
    tokens = job["turns"] * job["rollout_tokens"]
    return {
        "tokens_per_second": spread([tokens / r["seconds"] for r in runs]),
        "seconds": spread([r["seconds"] for r in runs]),
        "peak_MB": spread([r["peak_MB"] for r in runs]),
        "student_prompt_tokens": runs[0]["student_prompt_tokens"],
        "runs": runs,
    }


def report(sides: dict[str, Any]) -> None:
    """Print a table, and add the ratios to TRL."""
    print(f"\n  {'':<20} {'tokens/s min':>12} {'median':>8} {'max':>8} {'seconds':>8} {'peak MB':>8}  prompt tokens")
    for side, x in sides.items():
        rate, prompts = x["tokens_per_second"], x["student_prompt_tokens"]
        print(
            f"  {side:<20} {rate['min']:12.2f} {rate['median']:8.2f} {rate['max']:8.2f} {x['seconds']['median']:8.2f} "
            f"{x['peak_MB']['median']:8.0f}  {min(prompts)} to {max(prompts)}, sum {sum(prompts)}"
        )
    for side, x in sides.items():
        if TRL in sides and side != TRL:
            x["speed_over_trl"] = x["tokens_per_second"]["median"] / sides[TRL]["tokens_per_second"]["median"]
            print(f"  {side}: {x['speed_over_trl']:.2f} times TRL's speed")


def main() -> None:
    """Run the benchmark."""
    if child_or_main(sys.argv[1:], child):
        return
    parser = options(__doc__)
    parser.add_argument("--turns", type=int, default=16, help="rollouts that are decoded together")
    parser.set_defaults(prompt_tokens=1400)
    arguments = parser.parse_args()
    with prepared_job(arguments, arguments.turns) as (shared, settings):
        shared["turns"] = arguments.turns
        jobs: dict[str, Job] = {side: {**shared, "side": side} for side in arguments.only or [*VARIANTS, TRL]}
        for job in jobs.values():
            job |= {"batch": 1, "decoded": arguments.turns}  # TRL decodes all of them in one batch
        found = take_turns(MODULE, jobs, arguments.repetitions)
    sides = {side: summary(jobs[side], runs) for side, runs in found.items()}
    report(sides)
    save(arguments, {**settings, "turns": arguments.turns, "sides": sides})


if __name__ == "__main__":
    main()
