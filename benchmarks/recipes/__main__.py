"""Train and evaluate recipes on one setting, and print what each learned and forgot.

    python -m benchmarks.recipes --out study [--setting examples | real | continual] [--recipes NAME ...]
        [--seeds 0 1 2] [--sessions 144] [--jobs 2] [--threads 1] [--general 60] [--questions 120] [--real FOLDER]

SmolLM2-135M, profile cpu-demo. Without --recipes all of the setting are run (`recipes.py`); what is finished in --out
is not run again, so more recipes or seeds can be added later. Writes study.md, study.svg (skill against drift) and
study.json. All recipes are judged on the same held-out records, with the same wording of the teacher's for the
divergence; intervals are over sessions that share no text.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.recipes.data import prepared
from benchmarks.recipes.recipes import BASIS, SETTINGS, Recipe
from benchmarks.recipes.runs import Study, contents_of, evaluate, train
from benchmarks.recipes.tables import FORGOTTEN, LEARNED, drift_table, plot, study, table
from sdft_cli.config import EvalConfig

TOGETHER = 3
"""Recipes that one process evaluates, beside the base."""


def main() -> None:
    """Train, evaluate and print."""
    options = _options()
    folder: Path = options.out / options.setting
    folder.mkdir(parents=True, exist_ok=True)
    overrides = {} if options.steps is None else {"optim.max_steps": options.steps}
    sizes = (options.general, options.questions)
    work = Study(folder, tuple(options.seeds), options.threads, overrides, *sizes)
    recipes = [r for r in SETTINGS[options.setting] if options.recipes is None or r.name in options.recipes]
    datasets = {
        wording: prepared(folder, options.setting, wording, options.sessions, options.real)
        for wording in dict.fromkeys([BASIS, *(r.wording for r in recipes)])
    }
    for dataset in (one for found in datasets.values() for one in found):
        contents_of(dataset)
    jobs = [(recipe, seed) for seed in work.seeds for recipe in recipes]
    with ThreadPoolExecutor(options.jobs) as pool:
        done = [pool.submit(train, work, recipe, seed, datasets[recipe.wording]) for recipe, seed in jobs]
        for one in done:
            one.result()
        parts = range(len(datasets[BASIS]))
        some = [recipes[i : i + TOGETHER] for i in range(0, len(recipes), TOGETHER)]
        tried = [(part, data, batch) for part in parts for data in parts for batch in some]
        found = [pool.submit(evaluate, work, b, part, data, datasets[BASIS][data]) for part, data, b in tried]
        documents = {
            (name, part, data): document
            for (part, data, _), future in zip(tried, found, strict=True)
            for name, document in future.result().items()
        }
    text = _written(folder, work, recipes, documents, len(parts))
    (folder / "study.md").write_text(text)
    print(text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--setting", choices=SETTINGS, default="examples")
    parser.add_argument("--recipes", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--sessions", type=int, default=144)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--general", type=int, default=60)
    parser.add_argument("--questions", type=int, default=120)
    parser.add_argument("--real", type=Path)
    return parser.parse_args()


def _written(
    folder: Path, work: Study, recipes: Sequence[Recipe], documents: dict[tuple[str, int, int], Any], parts: int
) -> str:
    """Write numbers and plots of every part of training on every dataset; return the tables."""
    texts = []
    for part in range(parts):
        for data in range(parts):
            found = {r.name: _contenders(documents[r.name, part, data]) for r in recipes}
            base = documents[recipes[0].name, part, data]["contenders"]["base"]
            opponents = [r.name for r in recipes if r.is_sft]
            result = study(found, base, opponents, EvalConfig())
            name = "study" if parts == 1 else f"study-{part}-on-{data}"
            (folder / f"{name}.json").write_text(json.dumps(result, indent=2, sort_keys=True))
            (folder / f"{name}.svg").write_text(plot(result))
            texts.append(_text(work, documents[recipes[0].name, part, data], result, part, data, parts))
    return "\n".join(texts)


def _contenders(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [found for name, found in document["contenders"].items() if name != "base"]


def _text(work: Study, document: dict[str, Any], result: dict[str, Any], part: int, data: int, parts: int) -> str:
    set_against = f"\n\nMinus SFT at equal drift:\n\n{drift_table(result)}" if result["at equal drift"] else ""
    where = "" if parts == 1 else f"After training on dataset {part + 1}, evaluated on dataset {data + 1}. "
    return (
        f"{where}{document['records']} held-out records of {document['facts']['sessions']} sessions, "
        f"{document['facts']['tool_turns']} tool turns; seeds {list(work.seeds)}. The base's values; below, "
        "differences from it: mean of the seeds [95% interval over sessions or prompts, with these seeds] (smallest to "
        f"largest of the seeds).\n\n{table(result, LEARNED)}\n\n{table(result, FORGOTTEN)}{set_against}\n"
    )


if __name__ == "__main__":
    main()
