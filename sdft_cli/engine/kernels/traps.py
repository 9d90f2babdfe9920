"""Installed versions whose gated delta rule is known to raise or to be wrong.

- Hopper: Triton from 3.4.0 to 3.7.0 compiles a part of the backward pass wrongly, so that gradients of decay and beta
  are off (flash-linear-attention, issue 640). fla-core notices that from 0.5.0 on and raises in the backward pass,
  unless tilelang takes over; 0.5.0 and 0.5.1 raise with later ones too, since they do not know that 3.7.1 is right.
- Blackwell: with Triton before 3.8 some configurations give other results from call to call (issues 945 and 1228);
  fla-core leaves them out from 0.6.0 on.

unsloth_zoo brings a copy of fla-core 0.5.1 that avoids both, and uses it unless a newer one is installed. All of this
is in `fla/ops/common/chunk_o.py` of the versions named.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from packaging.version import Version

HOPPER, BLACKWELL = (9,), (10, 12)
"""Major numbers of compute capabilities."""
WRONG_FROM, RIGHT_FROM, RIGHT_ON_BLACKWELL = Version("3.4.0"), Version("3.7.1"), Version("3.8.0")
"""Triton."""
NOTICES_FROM, KNOWS_FROM, LEAVES_OUT_FROM = Version("0.5.0"), Version("0.5.2"), Version("0.6.0")
"""fla-core: raises instead of wrong gradients; knows that Triton is right again; leaves out what Blackwell spoils."""


@dataclass(frozen=True)
class Stack:
    """What the gated delta rule of fla runs on. `bundled`: the copy of unsloth_zoo."""

    capability: int
    fla: str
    triton: str
    tilelang: bool = False
    bundled: bool = False


def stack_of(device: torch.device) -> Stack:
    """Return what is imported here; fla is, since it is bound."""
    fla: Any = importlib.import_module("fla")
    triton: Any = importlib.import_module("triton")
    return Stack(
        torch.cuda.get_device_capability(device)[0],
        str(getattr(fla, "__version__", "0")),
        str(triton.__version__),
        importlib.util.find_spec("tilelang") is not None,
        hasattr(importlib.import_module("fla.ops.common.chunk_o"), "_is_hopper_tensor"),
    )


def known_trap(stack: Stack) -> str | None:
    """Say in one sentence why this stack is not to be trained with, and what to install; None: nothing is known."""
    fla, triton = Version(stack.fla), Version(stack.triton)
    if stack.bundled:
        return None
    if stack.capability in BLACKWELL and triton < RIGHT_ON_BLACKWELL and fla < LEAVES_OUT_FROM:
        return _sentence(stack, "gives other results from call to call", "Blackwell", "issues 945 and 1228")
    if stack.capability not in HOPPER or triton < WRONG_FROM:
        return None
    if fla < NOTICES_FROM and triton < RIGHT_FROM:
        return _sentence(stack, "returns wrong gradients", "Hopper", "issue 640")
    if fla < NOTICES_FROM or stack.tilelang or (fla >= KNOWS_FROM and triton >= RIGHT_FROM):
        return None
    return _sentence(stack, "raises in the backward pass", "Hopper", "issue 640")


def _sentence(stack: Stack, does: str, card: str, where: str) -> str:
    return (
        f"The gated delta rule of fla-core {stack.fla} with triton {stack.triton} {does} on this GPU ({card}; "
        f"flash-linear-attention, {where}): pip install 'sdft-cli[gpu]', which brings fla-core 0.6 and torch 2.12.1 or "
        "later with triton 3.7.1 or later."
    )
