"""Training and evaluation of a recipe as users run them: `sdft train`, `sdft eval`. What is done is not done again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.recipes.recipes import COMMON, Recipe

EVALUATION = ("--max-new-tokens", "72")
MARK = "study.json"
"""In a run's folder: what it was made of, and so whether it has to be made again."""


@dataclass(frozen=True)
class Study:
    """`folder` of a setting; `seeds`; `threads` of each process; `overrides`: settings of every recipe."""

    folder: Path
    seeds: tuple[int, ...]
    threads: int
    overrides: dict[str, Any]
    general: int
    questions: int

    def run_folder(self, recipe: Recipe, seed: int, part: int) -> Path:
        """Return where a run is: `part` counts the datasets that a run goes through one after the other."""
        return self.folder / "runs" / f"{recipe.name.replace(' ', '_').replace(',', '')}-{seed}-{part}"

    def evaluation(self, recipe: Recipe, part: int, data: int) -> Path:
        """Return the evaluation of a recipe's runs, of all seeds, after a part of training, on a dataset."""
        name = recipe.name.replace(" ", "_").replace(",", "")
        return self.folder / "evaluations" / f"{name}-{part}-on-{data}.json"


def train(study: Study, recipe: Recipe, seed: int, datasets: Sequence[Path]) -> list[Path]:
    """Train on datasets one after the other, each run from the adapter of the one before; return the run folders."""
    runs: list[Path] = []
    for part, data in enumerate(datasets):
        target = study.run_folder(recipe, seed, part)
        settings = COMMON | study.overrides | recipe.settings | {"seed": seed}
        before = (runs[-1] / MARK).read_text() if runs else None
        written = json.dumps({"config": resolved(settings), "data": contents_of(data), "after": before}, sort_keys=True)
        mark = target / MARK
        if not mark.is_file() or mark.read_text() != written:
            options = [x for key, value in settings.items() for x in ("--set", f"{key}={value}")]
            options += ["--init-adapter", str(runs[-1])] if runs else []
            _sdft(study, "train", str(data), "--profile", "cpu-demo", "--out", str(target), "--overwrite", *options)
            mark.write_text(written)
        runs.append(target)
    return runs


def resolved(settings: dict[str, Any]) -> dict[str, Any]:
    """Return all settings of a run, those of the profile too: it may have changed since a run was made."""
    from sdft_cli.config import load_train_config

    return load_train_config("cpu-demo", [f"{key}={value}" for key, value in settings.items()]).model_dump(mode="json")


@cache
def contents_of(data: Path) -> str:
    """Return the hash of a dataset's records and wording. Call it once before threads do: they would import at once."""
    from sdft_cli.engine.train.opening import records_hash
    from sdft_cli.records import read_dataset

    found = read_dataset(data)
    return f"{records_hash([*found.train, *found.validation])} {found.manifest['teacher_text']}"


def evaluate(study: Study, recipes: Sequence[Recipe], part: int, data: int, dataset: Path) -> dict[str, dict[str, Any]]:
    """Evaluate base and runs of recipes after a part of training, in one process; return each recipe's document.

    A document is that of `sdft eval`, with the contenders that belong to the recipe: the base and a run of each seed.
    """
    sizes = ("--general", str(study.general), "--questions", str(study.questions))
    runs = {r.name: [study.run_folder(r, seed, part) for seed in study.seeds] for r in recipes}
    made_of = {
        name: json.dumps([[(run / MARK).read_text() for run in some], *EVALUATION, *sizes, contents_of(dataset)])
        for name, some in runs.items()
    }
    targets = {r.name: study.evaluation(r, part, data) for r in recipes}
    missing = [name for name, target in targets.items() if _mark(target) != made_of[name]]
    if missing:
        first, *others = [run for name in missing for run in runs[name]]
        whole = study.folder / "evaluations" / f"whole-{first.name}-on-{data}.json"
        whole.parent.mkdir(parents=True, exist_ok=True)
        controls = [x for run in others for x in ("--control", str(run))]
        _sdft(study, "eval", str(first), str(dataset), "--out", str(whole), *controls, *EVALUATION, *sizes)
        for name, own in parted(json.loads(whole.read_text()), {name: runs[name] for name in missing}).items():
            targets[name].write_text(json.dumps(own))
            targets[name].with_suffix(".made").write_text(made_of[name])
        whole.unlink()
    return {name: json.loads(target.read_text()) for name, target in targets.items()}


def parted(document: dict[str, Any], runs: dict[str, Sequence[Path]]) -> dict[str, dict[str, Any]]:
    """Part the document of an evaluation: name -> the base and the runs of that name, called as their folders are.

    `sdft eval` calls the first of all runs `tuned`, and the only SFT run among the others `sft`.
    """
    found = document["contenders"]
    called = [run.name for some in runs.values() for run in some]
    known = {"tuned": called[0], "sft": next((run for run in called[1:] if run not in found), "sft")}
    contenders = {known.get(name, name): contender for name, contender in found.items()}
    return {
        name: {**document, "contenders": {key: contenders[key] for key in ("base", *(run.name for run in some))}}
        for name, some in runs.items()
    }


def _mark(target: Path) -> str | None:
    mark = target.with_suffix(".made")
    return mark.read_text() if target.is_file() and mark.is_file() else None


def _sdft(study: Study, *arguments: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": str(study.threads)}
    log = study.folder / "log.txt"
    with log.open("ab") as out:
        done = subprocess.run(
            [sys.executable, "-m", "sdft_cli", *arguments], env=environment, stdout=out, stderr=subprocess.STDOUT
        )
    if done.returncode:
        raise SystemExit(f"sdft {' '.join(arguments)} ended with {done.returncode}: see {log}.")
