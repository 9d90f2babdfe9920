"""Which kernels a loaded model runs with: told where it is as it should be, warned of or refused where it is not."""

from __future__ import annotations

from typing import Any

import torch

from sdft_cli.engine.kernels.agreement import compared
from sdft_cli.engine.kernels.bound import (
    CHUNKS,
    ONE_TOKEN,
    REFERENCE,
    Bound,
    bound_kernels,
)
from sdft_cli.engine.kernels.traps import known_trap, stack_of
from sdft_cli.errors import WARNING, MachineError

SLOW = (CHUNKS, ONE_TOKEN)
"""What costs much in plain torch; a convolution does not."""
DISTRIBUTIONS = {"fla": "fla-core", "causal_conv1d": "causal-conv1d"}
"""Package -> the name under which it is installed."""


def check_kernels(model: Any, device: torch.device) -> str | None:
    """Compare what the gated delta layers of a loaded model call with transformers' reference.

    Returns a sentence: what runs, and how far from the reference it is; on a GPU a warning where the reference itself
    runs. None if the model has no such layers.

    Raises:
        MachineError: a kernel is known to be wrong on this machine, raises, or disagrees with the reference.
    """
    found = bound_kernels(model)
    if not any(bound.what in SLOW for bound in found):
        return None
    told: dict[str, list[str]] = {}
    for bound in found:
        told.setdefault(_name(bound), []).append(bound.what + _agreement(bound, device))
    if device.type == "cuda" and any(b.package == REFERENCE for b in found if b.what in SLOW):
        return (
            f"{WARNING}the gated delta layers run transformers' reference on this GPU, about ten times slower than "
            "fused kernels (on an H100 46 ms for 2,048 tokens of a layer, forward and backward, for 4.7): pip install "
            "'sdft-cli[gpu]'"
        )
    attention = getattr(model.config.get_text_config(), "_attn_implementation", None)
    parts = [f"{name} for {', '.join(whats)}" for name, whats in told.items()]
    return f"Kernels: {'; '.join(parts)}; attention by {attention or 'the model itself'}"


def _name(bound: Bound) -> str:
    return "transformers' reference" if bound.package == REFERENCE else DISTRIBUTIONS.get(bound.package, bound.package)


def _agreement(bound: Bound, device: torch.device) -> str:
    """Return what to say of a kernel that agrees; the reference is not compared with itself."""
    if bound.package == REFERENCE:
        return ""
    if bound.package == "fla" and device.type == "cuda":
        trap = known_trap(stack_of(device))
        if trap:
            raise MachineError(trap)
    what = f"the kernel of {_name(bound)} for {bound.what}"
    repair = f"pip install 'sdft-cli[gpu]', or uninstall {_name(bound)}, and transformers' slow reference runs."
    try:
        found = compared(bound, device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # Triton and CUDA raise errors of many kinds, and what the kernel is for comes later
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise MachineError(f"{what} raises {type(error).__name__} on this machine ({reason}): {repair}") from error
    if not found.holds:
        distance = found.distances[found.worst]
        raise MachineError(
            f"{what} disagrees with transformers' reference on this machine ({found.worst} by {distance:.2g}, where "
            f"rounding is {found.floor:.2g}): {repair}"
        )
    return f" (off by {found.distances[found.worst]:.2g} from the reference, rounding alone {found.floor:.2g})"
