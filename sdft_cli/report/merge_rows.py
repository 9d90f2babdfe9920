"""The rows of a merge certificate: the same on the terminal and in a model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def merge_rows(check: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a certificate that passed says, as label and value."""
    adapted, behaviour = check["adapted"], check["behaviour"]
    shares = [tensor["surviving_share"] for tensor in adapted]
    same = sum(state.startswith("identical") for state in check["files"].values())
    near = "" if behaviour["base_is_told_apart"] else ", too near to tell the base from the merge by running them"
    uses = [("features of the adapter", ", ".join(check["uses"]))] if check.get("uses") else []
    return [
        *uses,
        (
            "adapted tensors, each as the adapter makes it" if uses else "adapted tensors, each base + (alpha / r) B A",
            str(len(adapted)),
        ),
        ("  largest distance from the fp32 sum", f"{max(t['ulps'] for t in adapted)} ulp"),
        (f"  of their updates, elements that survive {check['dtype']}", f"{min(shares):.1%} to {max(shares):.1%}"),
        *((f"untouched tensors, {state}", str(count)) for state, count in check["untouched"].items() if count),
        ("tokenizer, template and configuration files as in the base", f"{same} of {len(check['files'])}"),
        ("loaded and run on", behaviour["device"]),
        ("KL(adapter on || merged), mean nats", f"{behaviour['mean_kl']:.2e}"),
        *_rounded_alike(behaviour),
        ("KL(adapter on || base), mean nats", f"{behaviour['base_mean_kl']:.2e}{near}"),
        ("largest KL at a position, nats", f"{behaviour['max_kl']:.2e}"),
        ("same top-1 token", f"{behaviour['top1_agreement']:.2%} of {behaviour['positions']}"),
        ("same greedy answer", f"{behaviour['same_answers']} of {behaviour['answers']}"),
        *_with_calls(behaviour),
    ]


def _rounded_alike(behaviour: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Certificates of older versions, of other features and of another type of weights than the base's lack it."""
    found = behaviour.get("as_written_kl")
    return [] if found is None else [("  with its sums rounded as in the merge", f"{found:.2e}")]


def _with_calls(behaviour: Mapping[str, Any]) -> list[tuple[str, str]]:
    same, calls = behaviour["same_answers_with_calls"], behaviour["answers_with_calls"]
    return [] if calls is None else [("  with a tool call", f"{same} of {calls}")]
