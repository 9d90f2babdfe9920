"""Settings whose choices have more behind them than a name: divergences and backends. No torch here.

A new divergence or backend stands here and in one module of the engine: `docs/adding.md`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Divergence:
    """How a divergence is called; what it computes stands in `engine/objective/formula.py`.

    `metric`: its mean per token in `metrics.jsonl`, named `..._per_token`. `symbol`, `phrase`: in model cards.
    """

    metric: str
    symbol: str
    phrase: str


DIVERGENCES = {
    "reverse_kl": Divergence(
        "kl_per_token", "KL(student || teacher)", "the reverse KL divergence KL(student || teacher)"
    ),
    "forward_kl": Divergence(
        "kl_per_token", "KL(teacher || student)", "the forward KL divergence KL(teacher || student)"
    ),
    "jsd": Divergence("jsd_per_token", "JSD(student, teacher)", "the Jensen-Shannon divergence of student and teacher"),
}

BACKENDS = {
    "unsloth": "sdft_cli.engine.models.backend_unsloth:UnslothBackend",
    "transformers": "sdft_cli.engine.models.backend_transformers:TransformersBackend",
}
"""Backend -> module and class. `--backend auto` takes the first one that has no objection to machine and model."""
