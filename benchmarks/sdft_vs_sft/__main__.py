"""SDFT against SFT on the demo's sessions: what each learns and forgets, at several learning rates and seeds.

    python -m benchmarks.sdft_vs_sft --out study [--rates 3e-4 1e-3 3e-3] [--seeds 0 1 2] [--steps 16] [--sessions 72]
        [--general 120] [--questions 60] [--threads 2]

SmolLM2-135M, profile cpu-demo; both arms see the same records in the same order with the same optimiser, and differ in
`--objective` only. A seed changes the adapter's start, the order of the records and the rollouts. Runs that are
finished in `--out` with the same settings are not run again. All adapters are evaluated against one base.

Each arm at each rate is the mean of its seeds, item by item; intervals resample sessions (held-out records) or prompts.
They say how sure the mean over these seeds is for other sessions; the seeds themselves are shown as a range, and where
the arms are compared, seed by seed.
`study.md` and `study.svg` (right tools gained against drift) are written to `--out`, with every number in `study.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bench_backends import prepare_data
from sdft_cli.config import EvalConfig
from sdft_cli.evaluate.differences import CLUSTER
from sdft_cli.intervals import Ratio, paired_interval
from sdft_cli.metrics import METRICS, Metric, part_of
from sdft_cli.report.comparison import trade_off_svg

OBJECTIVES = ("sdft", "sft")
LEARNED = {
    "expert_nll_per_token": "expert NLL, nats per token",
    "tool_named_share": "right tool",
    "tool_valid_share": "and arguments valid",
    "tool_exact_share": "and the expert's arguments",
    "unasked_call_share": "call not asked for",
}
FORGOTTEN = {
    "drift_kl": "KL(base to model), nats per token",
    "drift_same_top": "same top-1 token as the base",
    "questions_right": "questions right",
}
SHOWN = (*LEARNED, *FORGOTTEN)


@dataclass(frozen=True)
class Arm:
    """One training run."""

    objective: str
    rate: str
    seed: int

    @property
    def group(self) -> str:
        return f"{self.objective} {self.rate}"

    @property
    def name(self) -> str:
        return f"{self.objective}-{self.rate}-{self.seed}"


def train(arm: Arm, data: Path, folder: Path, steps: int, threads: int) -> Path:
    """Train an arm, unless it is there with these settings on this dataset; return its run folder."""
    target = folder / arm.name
    if not is_there(target, arm, data, steps):
        settings = {
            "objective": arm.objective,
            "optim.learning_rate": arm.rate,
            "seed": arm.seed,
            "optim.max_steps": steps,
            "heldout.every": "null",
            "gate.action": "off",
            "checkpoint.every": steps,
        }
        options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        command = [sys.executable, "-m", "sdft_cli", "train", str(data), "--profile", "cpu-demo", *options]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run([*command, "--out", str(target), "--overwrite"], check=True, env=environment)
    return target


def is_there(target: Path, arm: Arm, data: Path, steps: int) -> bool:
    """Say whether a finished run in a folder is this one."""
    if not (target / "adapter" / "adapter_model.safetensors").is_file():
        return False
    from sdft_cli.engine.train.run import records_hash
    from sdft_cli.records import read_dataset
    from sdft_cli.run_folder import read_run

    run = read_run(target)
    made = (run.config.objective, run.config.optim.learning_rate, run.config.seed, run.config.optim.max_steps)
    trained = run.info["dataset"]["records_hash"] == records_hash(read_dataset(data).train)
    return trained and made == (arm.objective, float(arm.rate), arm.seed, steps)


def evaluate_all(runs: dict[str, Path], data: Path, config: EvalConfig) -> dict[str, Any]:
    """Evaluate the base and every run's adapter; return the evaluation's document."""
    from sdft_cli.engine.models.load import open_for_eval
    from sdft_cli.engine.models.names import resolve_model
    from sdft_cli.engine.passes.choose import choose_sharing
    from sdft_cli.engine.score.scoring import Role
    from sdft_cli.evaluate.evaluation import Contender, evaluate
    from sdft_cli.prompts.chat import open_prompts
    from sdft_cli.records import read_dataset
    from sdft_cli.run_folder import read_run

    dataset, model = read_dataset(data), resolve_model("smollm2-135m")

    def contenders() -> Iterator[Contender]:
        for number, (name, path) in enumerate(runs.items()):
            backend = open_for_eval(model, "float32", None, read_run(path).adapter)
            choose_sharing(backend, "auto")
            base = Role(backend, "base", "base")
            if number == 0:
                yield Contender("base", "base", base, base)
            yield Contender(name, "control", Role(backend, "adapter", "merged"), base)
            del backend, base

    def progress(what: str, done: int, total: int) -> None:
        if done == total:
            print(f"  {what}: {total}", file=sys.stderr, flush=True)

    prompts = open_prompts(model, dataset.manifest)
    return evaluate(contenders(), dataset.validation, prompts, config, progress, against="first")


def _items(contender: dict[str, Any], metric: Metric) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = part_of(contender, metric.about)["items"]
    return found


def mean_of_seeds(contenders: Sequence[dict[str, Any]], metric: Metric) -> list[tuple[float, float] | None]:
    """Return each item's part of a metric, averaged over seeds."""
    columns = zip(*[[metric.count(i) for i in _items(c, metric)] for c in contenders], strict=True)
    found: list[tuple[float, float] | None] = []
    for column in columns:
        parts = [p for p in column if p is not None]
        full = len(parts) == len(contenders)
        found.append((sum(t for t, _ in parts) / len(parts), sum(b for _, b in parts) / len(parts)) if full else None)
    return found


def gap(one: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]], key: str, config: EvalConfig) -> dict[str, Any]:
    """Return the difference of two groups of runs on a metric, and that of each pair of seeds.

    A group of one, the base, stands against every seed.
    """
    metric = METRICS[key]
    names = [item[CLUSTER[metric.about]] for item in _items(one[0], metric)]

    def difference(some: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> Any:
        pairs = zip(mean_of_seeds(some, metric), mean_of_seeds(others, metric), names, strict=True)
        used = [(a, b, name) for a, b, name in pairs if a is not None and b is not None and a[1] and b[1]]
        a, b = (Ratio([u[i][0] for u in used], [u[i][1] for u in used]) for i in (0, 1))
        settings = config.confidence, config.resamples, config.seed
        return paired_interval(a, b, [name for _, _, name in used], *settings, metric.yes_or_no)

    seeds = zip(one, other if len(other) > 1 else [*other] * len(one), strict=True)
    return {**difference(one, other).to_json(), "seeds": [difference([a], [b]).value for a, b in seeds]}


def study(document: dict[str, Any], arms: Sequence[Arm], config: EvalConfig) -> dict[str, Any]:
    """Put runs together by objective and rate; compare each group with the base, and SDFT with SFT at each rate."""
    found = document["contenders"]
    groups = {
        group: [found[a.name] for a in arms if a.group == group] for group in dict.fromkeys(a.group for a in arms)
    }
    rates = list(dict.fromkeys(a.rate for a in arms))
    return {
        "base": {key: _base_value(found["base"], key) for key in SHOWN},
        "groups": {g: {key: gap(runs, [found["base"]], key, config) for key in SHOWN} for g, runs in groups.items()},
        "sdft - sft": {
            rate: {key: gap(groups[f"sdft {rate}"], groups[f"sft {rate}"], key, config) for key in SHOWN}
            for rate in rates
        },
    }


def _base_value(base: dict[str, Any], key: str) -> float:
    return float(part_of(base, METRICS[key].about)["summary"][key])


def table(result: dict[str, Any], shown: Mapping[str, str]) -> str:
    """Return metrics as Markdown: each group against the base, then SDFT against SFT."""
    lines = ["| | " + " | ".join(shown.values()) + " |", "| --- |" + " ---: |" * len(shown)]
    lines.append("| base | " + " | ".join(f"{result['base'][key]:.3f}" for key in shown) + " |")
    rows = {**result["groups"], **{f"sdft - sft at {rate}": gaps for rate, gaps in result["sdft - sft"].items()}}
    for name, gaps in rows.items():
        lines.append(f"| {name} | " + " | ".join(_cell(gaps[key]) for key in shown) + " |")
    return "\n".join(lines)


def plot(result: dict[str, Any], skill: str = "tool_named_share", forgetting: str = "drift_kl") -> str:
    """Return the plot of a metric that should rise against one that should not."""
    points = [{"name": g, "skill": gaps[skill], "forgetting": gaps[forgetting]} for g, gaps in result["groups"].items()]
    return trade_off_svg(points, skill, forgetting)


def _cell(one: dict[str, Any]) -> str:
    low, high = min(one["seeds"]), max(one["seeds"])
    interval = "" if one["low"] is None else f" [{one['low']:+.3f}, {one['high']:+.3f}]"
    return f"{one['value']:+.3f}{interval} ({low:+.3f} to {high:+.3f})"


def main() -> None:
    """Train, evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rates", nargs="+", default=["3e-4", "1e-3", "3e-3"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--sessions", type=int, default=72)
    parser.add_argument("--general", type=int, default=120)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    data = options.out / "data"
    if not data.is_dir():
        prepare_data(options.out, options.sessions)
        (options.out / "sessions.json").write_text(json.dumps(options.sessions))
    elif json.loads((options.out / "sessions.json").read_text()) != options.sessions:
        raise SystemExit(f"{data} was made of another number of sessions: choose another --out.")
    arms = [Arm(o, rate, seed) for rate in options.rates for seed in options.seeds for o in OBJECTIVES]
    runs = {arm.name: train(arm, data, options.out / "runs", options.steps, options.threads) for arm in arms}
    config = EvalConfig(
        max_new_tokens=72,
        drift_tokens=16,
        general=options.general,
        questions=options.questions,
        max_records_per_pass=32,
    )
    document = evaluate_all(runs, data, config)
    result = study(document, arms, config)
    (options.out / "evaluation.json").write_text(json.dumps(document, sort_keys=True))
    (options.out / "study.json").write_text(json.dumps(result, indent=2, sort_keys=True))
    (options.out / "study.svg").write_text(plot(result))
    text = (
        f"{document['records']} held-out records of {document['facts']['sessions']} sessions, "
        f"{document['facts']['tool_turns']} tool turns, {options.steps} steps of 8 records, seeds {options.seeds}. "
        "The base's values; below, differences: mean of the seeds [95% interval over sessions or prompts, with these "
        f"seeds] (smallest to largest of the seeds).\n\n{table(result, LEARNED)}\n\n{table(result, FORGOTTEN)}\n"
    )
    (options.out / "study.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
