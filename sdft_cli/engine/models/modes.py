"""What a model keeps between two passes beside its weights, so that none of it leaks from one into the next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd


def switch_off_dropout(model: nn.Module) -> None:
    """Set every dropout of a model to 0 for good, whatever mode it will be in; call it before an adapter is attached.

    The base is frozen: with dropout, two scorings by the same teacher differ. Probabilities stand in dropout modules,
    in numbers beside them (`attention_dropout`, `layerdrop`), and in configs that are read in the forward pass.
    """
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        _zero_dropouts(module)
        config = getattr(module, "config", None)
        if config is not None and not isinstance(config, nn.Module):
            _zero_dropouts(config)


def _zero_dropouts(owner: Any) -> None:
    for name, value in list(vars(owner).items()):
        if "drop" in name and isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            setattr(owner, name, 0.0)


def train_adapter_only(model: Any) -> None:
    """Put a peft model into the mode for training passes: the frozen base runs as in inference.

    What is in training mode: modules of the adapter (its own dropout), and layers with gradient checkpointing, which
    is off elsewhere.
    """
    model.eval()
    for name, module in model.named_modules():
        module.training = "lora_" in name or bool(getattr(module, "gradient_checkpointing", False))


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Every module's mode, training or not, is afterwards what it was before."""
    before = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; every module's mode is restored."""
    with modes_kept(model):
        model.eval()
        yield


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """The adapter's own dropout off, as in inference, and every other mode as it is."""
    dropouts = [module for module in model.modules() if isinstance(module, _DropoutNd) and module.training]
    try:
        for module in dropouts:
            module.training = False
        yield
    finally:
        for module in dropouts:
            module.training = True


def forget_positions(model: Any) -> None:
    """Drop the offsets of positions that Qwen-VL and its kin keep from the batch before."""
    for module in (model, model.base_model):
        if getattr(module, "rope_deltas", None) is not None:
            module.rope_deltas = None
