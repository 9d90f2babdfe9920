"""Settings whose choices have more behind them than a name: divergences, token weights, backends. No torch here.

A new one stands here and in one module of the engine: `docs/adding.md`.
"""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_PROFILE = "qwen3.5-9b-64k"
"""The profile of a run if nobody names one."""


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
    "mixed_kl": Divergence(
        "mixed_kl_per_token",
        "a KL(teacher || student) + (1 - a) KL(student || teacher)",
        "a mix of the forward KL divergence KL(teacher || student) and the reverse one, KL(student || teacher),",
    ),
    "entropy_aware_kl": Divergence(
        "entropy_aware_kl_per_token",
        "KL(student || teacher), plus KL(teacher || student) where the teacher is unsure",
        "the reverse KL divergence KL(student || teacher), plus the forward one where the teacher's entropy is high,",
    ),
}

TOKEN_WEIGHTS = {"prefix": "tokens weigh less behind tokens of which the teacher thinks otherwise than the student"}
"""Weighting of a trajectory's tokens -> what it does, for model cards; `none` is that of `distill.average` alone."""

DEFAULT_PROFILE = "qwen3.5-9b-64k"
"""The profile of training if neither an option nor a project file names one."""

BACKENDS = {
    "unsloth": "sdft_cli.engine.models.backend_unsloth:UnslothBackend",
    "transformers": "sdft_cli.engine.models.backend_transformers:TransformersBackend",
}
"""Backend -> module and class. `--backend auto` takes the first one that has no objection to machine and model."""
