"""Which weights are on. The only place that switches adapters or touches weights.

| context            | adapter in the forward pass | weights            | used for                          |
| ------------------ | --------------------------- | ------------------ | --------------------------------- |
| (none)             | on, with gradient           | base               | student's forward and backward    |
| `teacher_weights`  | off                         | base               | teacher; base model in `eval`     |
| `sampling_weights` | off, merged copy if asked   | base + (a/r) B A   | rollouts                          |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sdft_cli.errors import UsageError

NOT_LANGUAGE = (
    "visual",
    "vision_tower",
    "vision_model",
    "vision_embed_tokens",
    "multi_modal_projector",
    "audio_tower",
    "mtp",
)
"""Names of sub-modules that are no part of the language trunk."""


def target_pattern(names: Sequence[str]) -> str:
    """Return the regular expression, for peft's `target_modules`, of these modules of the language trunk only."""
    outside = "|".join(NOT_LANGUAGE)
    return rf"(?!(?:.*\.)?(?:{outside})\.)(?:.*\.)?(?:{'|'.join(map(re.escape, names))})"


def check_targets(module_names: Iterable[str], names: Sequence[str]) -> None:
    """Refuse target names that no module of the language trunk has.

    Raises:
        UsageError: names the ones that hit nothing; a silent miss would train less than the profile says.
    """
    pattern = re.compile(target_pattern(names))
    hit = {name.rsplit(".", 1)[-1] for name in module_names if pattern.fullmatch(name)}
    missing = [name for name in names if name not in hit]
    if missing:
        raise UsageError(
            f"The model has no language module named {', '.join(missing)}: correct lora.target_modules "
            f"(e.g. --set 'lora.target_modules=[{', '.join(sorted(hit)) or 'q_proj, v_proj'}]')."
        )


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """Return the LoRA layers of a peft model by name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


@contextmanager
def teacher_weights(model: Any) -> Iterator[None]:
    """The base model: adapters off, no gradient. Restores what was on before."""
    with torch.no_grad(), model.disable_adapter():
        yield


@contextmanager
def sampling_weights(model: Any, merged: bool) -> Iterator[None]:
    """The student for sampling, without gradient.

    With `merged`, each adapted weight is replaced by W + (alpha/r) B A, added in fp32 and cast once, and the adapter is
    off. The pristine tensors are kept aside and put back untouched, so the base never drifts.
    """
    if not merged:
        with torch.no_grad():
            yield
        return
    pristine: list[tuple[nn.Parameter, torch.Tensor]] = []
    with torch.no_grad(), model.disable_adapter():
        try:
            for layer in lora_layers(model).values():
                weight = layer.get_base_layer().weight
                delta = layer.get_delta_weight(layer.active_adapters[0]).float()
                pristine.append((weight, weight.data))
                weight.data = (weight.data.float() + delta).to(weight.dtype)
            yield
        finally:
            for weight, data in pristine:
                weight.data = data
