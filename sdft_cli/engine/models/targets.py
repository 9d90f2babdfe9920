"""Which modules an adapter sits on: linear layers of the language trunk, by structure, before weights are loaded."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import nn

from sdft_cli.config import TrainConfig
from sdft_cli.errors import UsageError

ROUTERS = frozenset({"router", "gate", "shared_expert_gate", "modality_router"})
"""Parts of the names of layers that choose experts: adapted if they are named, never suggested."""

READ_BY_KERNELS = frozenset({"out_proj", "x_proj", "dt_proj"})
"""Layers of a Mamba mixer whose weights its kernels read themselves, past an adapter."""


def trunk_path(model: Any) -> str:
    """Return the dotted name of the language trunk inside a model; empty if it is the model."""
    trunk = model.get_decoder()
    path: str = next(name for name, module in model.named_modules() if module is trunk)
    return path


def trunk_linears(model: Any) -> dict[str, nn.Linear]:
    """Return all linear layers of the language trunk by dotted name, without the output head."""
    path, head = trunk_path(model), model.get_output_embeddings()
    start = f"{path}." if path else ""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(start) and module is not head
    }


def adaptable(model: Any) -> dict[str, nn.Linear]:
    """Return those that an adapter can sit on: of weights of their own, not read past it, not taken for others."""
    taken = _taken_for_experts(model)
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    mixers = {name for name, module in model.named_modules() if hasattr(module, "A_log") and hasattr(module, "D")}
    found = {}
    for name, module in trunk_linears(model).items():
        parent, _, leaf = name.rpartition(".")
        past = leaf in READ_BY_KERNELS and parent in mixers
        if uses[id(module.weight)] == 1 and not past and leaf not in taken:
            found[name] = module
    return found


def _taken_for_experts(model: Any) -> frozenset[str]:
    """Return names of modules for which peft, at this type of model, adapts the routed experts' tensors instead."""
    from peft.utils import transformers_weight_conversion

    conversion: Any = transformers_weight_conversion
    kind = conversion._MODEL_TO_CONVERSION_PATTERN.get(model.config.model_type)
    renamed = conversion._MOE_TARGET_MODULE_MAPPING.get(kind, {}) if conversion._MOE_FUSED_TARGETS.get(kind) else {}
    return frozenset(renamed)


def suggested(model: Any) -> tuple[str, ...]:
    """Return names, for `lora.target_modules`, of all adaptable layers that choose no experts."""
    path = trunk_path(model)
    start = f"{path}." if path else ""
    wanted = {name: None for name in adaptable(model) if not ROUTERS & set(name.split("."))}
    inside = (name for name, _ in model.named_modules() if name.startswith(start))
    others = {_short(name, 1) for name in inside if name not in wanted}
    names = (_short(name, 2 if _short(name, 1) in others else 1) for name in wanted)
    return tuple(dict.fromkeys(names))


def _short(name: str, words: int) -> str:
    """Return the end of a dotted name, `words` words long besides numbers: `mlp.0` of `layers.3.mlp.0`."""
    parts = name.split(".")
    for start in range(len(parts) - 1, -1, -1):
        words -= not parts[start].isdigit()
        if words == 0:
            return ".".join(parts[start:])
    return name


def target_pattern(model: Any, names: Sequence[str]) -> str:
    """Return the regular expression, for peft's `target_modules`, of these modules of the language trunk only."""
    path = trunk_path(model)
    start = re.escape(f"{path}.") if path else ""
    return rf"{start}(?:.*\.)?(?:{'|'.join(map(re.escape, names))})"


def check_reached(model: Any, targets: Sequence[str]) -> None:
    """Refuse targets that training would not reach: the loss reads the head's frozen weight, not its module.

    Args:
        model: with or without weights.
        targets: names of modules.

    Raises:
        UsageError: a target is the output head, or the embedding.
    """
    ends: tuple[tuple[str, nn.Module | None], ...] = (
        ("the output head", model.get_output_embeddings()),
        ("the token embedding", model.get_input_embeddings()),
    )
    for name, module in model.named_modules():
        what = next((text for text, end in ends if module is end), None)
        leaf = name.rsplit(".", 1)[-1]
        if what and leaf in targets:
            raise UsageError(
                f"{leaf} is {what}, which the loss reads without an adapter, so it would not be trained: leave {leaf} "
                "out of lora.target_modules."
            )


def target_names(model: Any, asked: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the modules that a run adapts.

    Args:
        model: without adapter; it may be on the meta device.
        asked: `lora.target_modules`.

    Raises:
        UsageError: a name hits no linear layer of the trunk, or something that cannot be adapted; it says what can be.
    """
    if getattr(model.config, "rescale_every", 0):
        raise UsageError(
            f"{model.config.model_type} rescales its own weights while it runs (rescale_every), which no adapter "
            "follows: train a model of another family."
        )
    able = suggested(model)
    if not able:
        kinds = sorted({type(m).__name__ for m in model.get_decoder().modules() if not list(m.children())})
        raise UsageError(
            f"The trunk of this {model.config.model_type} model has no linear layer for an adapter, only "
            f"{', '.join(kinds)}: train a model of another family."
        )
    if asked == "all-linear":
        return able
    check_reached(model, asked)
    hint = f"correct lora.target_modules (--set 'lora.target_modules=[{', '.join(able)}]', or all-linear)."
    missing = [name for name in asked if not hits(model, [name])]
    if missing:
        raise UsageError(f"The model has no language module named {', '.join(missing)}: {hint}")
    sound = adaptable(model)
    wrong = [name for name in hits(model, asked) if name not in sound]
    if wrong:
        raise UsageError(f"An adapter on {wrong[0]} would not be trained or merged rightly: {hint}")
    return tuple(asked)


def with_targets(config: TrainConfig, model: Any) -> TrainConfig:
    """Return the configuration with the names of the modules that `target_names` finds on a model."""
    names = target_names(model, config.lora.target_modules)
    return config.model_copy(update={"lora": config.lora.model_copy(update={"target_modules": names})})


def hits(model: Any, names: Sequence[str]) -> list[str]:
    """Return the dotted names of the modules that these names hit."""
    pattern = re.compile(target_pattern(model, names))
    return [name for name, _ in model.named_modules() if pattern.fullmatch(name)]


def targets_told(model: Any, asked: Sequence[str]) -> list[str]:
    """Return sentences: what the adapter sits on, and which share of the trunk it does not reach.

    Raises:
        UsageError: as `target_names`.
    """
    names = target_names(model, asked)
    adapted = hits(model, names)
    told = [f"LoRA on: {', '.join(names)} ({len(adapted)} layers)"]
    routed = {n: p.numel() for n, p in model.get_decoder().named_parameters() if "experts" in n.split(".")}
    left = sum(size for name, size in routed.items() if not any(name.startswith(f"{a}.") for a in adapted))
    if left:
        whole = sum(p.numel() for p in model.get_decoder().parameters())
        told.append(
            f"MoE: the adapter does not reach the routed experts, {left:,} of the trunk's {whole:,} parameters "
            f"({left / whole:.0%}); all tokens share what it adapts"
        )
    return told
