"""Is the gate's ranking of wordings that of results? Spearman's rank correlation with a study's metrics.

sdft gate DATASET --profile cpu-demo --templates again,own_turn,examples,expert_reference,repeat --out ranking.json
python -m benchmarks.recipes --out study --recipes "again, forward" "own_turn, forward" ...
python -m benchmarks.recipes.ranking ranking.json study/examples/study.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from benchmarks.recipes.recipes import WORDINGS
from benchmarks.recipes.tables import LEARNED
from sdft_cli.metrics import METRICS

PAIRS = {(recipe.wording, recipe.settings["distill.divergence"]): recipe.name for recipe in WORDINGS}
"""Wording and divergence -> the recipe that trains them."""


def correlations(ranking: Sequence[Mapping[str, Any]], study: Mapping[str, Any]) -> dict[str, float]:
    """Return, by metric, the correlation of the gate's order with that of results: 1 if both are the same.

    Args:
        ranking: the `ranking` of `sdft gate --out`, the best first; pairs that were not trained are left out.
        study: a `study.json`.

    Raises:
        ValueError: fewer than three of the pairs were trained.
    """
    names = [PAIRS.get((one["template"], one["divergence"])) for one in ranking]
    trained = [study["recipes"][name] for name in names if name in study["recipes"]]
    if len(trained) < 3:
        raise ValueError(f"{len(trained)} of the ranked pairs were trained: an order needs at least three")
    places = [-place for place in range(len(trained))]
    found = {}
    for key in LEARNED:
        better = -1 if METRICS[key].better == "lower" else 1
        found[key] = float(spearmanr(places, [better * gaps[key]["value"] for gaps in trained]).statistic)
    return found


def main() -> None:
    """Print a line per metric."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ranking", type=Path)
    parser.add_argument("study", type=Path)
    options = parser.parse_args()
    ranking = json.loads(options.ranking.read_text())["ranking"]
    print("The gate's order:", "; ".join(f"{one['template']}, {one['divergence']}" for one in ranking))
    for key, value in correlations(ranking, json.loads(options.study.read_text())).items():
        print(f"{LEARNED[key]:32} {value:+.2f}")


if __name__ == "__main__":
    main()
