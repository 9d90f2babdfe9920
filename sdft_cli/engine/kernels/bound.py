"""Which functions the modules of a loaded model call for what transformers leaves to kernels of other packages.

transformers (5.17, `integrations/hub_kernels.py`) decides when a modeling file is imported: a wrapper holds the
package's function, or else a reference in plain torch, and warns once when the reference runs. unsloth may bind its own
copy of the package afterwards, and wraps once more. Older versions hang the function on the module. So the names are
looked up where the forward pass of the module looks them up, and wrappers are followed to the end.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

REFERENCE = "transformers"
"""`Bound.package` of what runs in plain torch."""

CHUNKS, ONE_TOKEN = "gated delta rule", "gated delta rule of one token"
CONVOLUTION, CONVOLUTION_STEP = "causal convolution", "causal convolution of one token"
NAMES = {
    CHUNKS: ("torch_chunk_gated_delta_rule", "chunk_gated_delta_rule"),
    ONE_TOKEN: (
        "torch_recurrent_gated_delta_rule",
        "recurrent_gated_delta_rule",
        "fused_recurrent_gated_delta_rule",
    ),
    CONVOLUTION: ("causal_conv1d_fn",),
    CONVOLUTION_STEP: ("causal_conv1d_update",),
}
"""What is computed -> the names by which forward passes call it."""


@dataclass(frozen=True)
class Bound:
    """A function that modules of the model call.

    `what` is a key of `NAMES`, `package` that of the function that does the work (`REFERENCE`: plain torch), `module`
    the first module that calls it.
    """

    what: str
    package: str
    function: Callable[..., Any]
    module: nn.Module


def bound_kernels(model: nn.Module) -> list[Bound]:
    """Return what the modules of a loaded model call, one entry for each of `NAMES` that any of them uses."""
    found: dict[str, Bound] = {}
    for module in model.modules():
        for what, names in NAMES.items():
            function = None if what in found else _called(module, names)
            if function is not None:
                found[what] = Bound(what, package_of(function), function, module)
    return [found[what] for what in NAMES if what in found]


def _called(module: nn.Module, names: tuple[str, ...]) -> Callable[..., Any] | None:
    """Return the function of one of these names that the module's forward pass calls: an attribute of it, or global."""
    forward = innermost(module.forward)
    used = getattr(getattr(forward, "__code__", None), "co_names", ())
    for name in names:
        if name in used:
            function = getattr(module, name, None) or forward.__globals__.get(name)
            if callable(function):
                return function  # type: ignore[no-any-return]
    return None


def package_of(function: Callable[..., Any]) -> str:
    """Name the package of the function that does the work."""
    package = str(getattr(innermost(function), "__module__", None) or "").partition(".")[0]
    return REFERENCE if package.startswith(("transformers", "unsloth_compiled", "torch")) else package


def innermost(function: Any) -> Any:
    """Follow wrappers to the function that does the work."""
    seen: set[int] = set()
    while id(function) not in seen:
        seen.add(id(function))
        function = _wrapped_by(function) or function
    return function


def _wrapped_by(function: Any) -> Any:
    """Return what a wrapper calls, or None: of transformers, of the package kernels, of unsloth, of torch.compile."""
    if isinstance(function, nn.Module):  # the package kernels makes a module of a function
        return type(function).forward
    if isinstance(function, functools.partial):
        return function.func
    if inspect.ismethod(function):
        return function.__func__
    inside = {}
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=False):
        try:
            inside[name] = cell.cell_contents
        except ValueError:  # not filled yet
            continue
    for name in ("implementation", "func"):  # before __wrapped__, which is the reference
        if callable(inside.get(name)):
            return inside[name]
    for name in ("_torchdynamo_orig_callable", "_unsloth_undisabled", "__wrapped__"):
        if callable(getattr(function, name, None)):
            return getattr(function, name)
    return None
