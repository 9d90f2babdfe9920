"""What the modules of a model call, on the classes and the wrappers of transformers, unsloth and torch themselves."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from sdft_cli.engine.kernels.bound import NAMES, REFERENCE, Bound, bound_kernels, innermost, package_of  # noqa: E402
from tests.engine.models.families import make_config  # noqa: E402
from tests.engine.models.test_adapters import tiny_qwen35  # noqa: E402


def kernel_of(package: str, run: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """A function that looks as if a package had brought it."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        assert run is not None
        return run(*args, **kwargs)

    kernel.__module__ = f"{package}.ops"
    return kernel


def wrapped_by_transformers(kernel: Callable[..., Any], reference: Callable[..., Any]) -> Callable[..., Any]:
    """As `use_kernel_func_from_hub_with_fallback` would have bound the kernel: its wrapper around the reference."""
    from transformers.integrations.hub_kernels import use_kernel_func_from_hub_with_fallback

    wrapper = use_kernel_func_from_hub_with_fallback("chunk_gated_delta_rule", "no_such_package")(reference)
    names = wrapper.__code__.co_freevars
    cell = wrapper.__closure__[names.index("implementation")]  # type: ignore[index]
    assert cell.cell_contents is reference
    cell.cell_contents = kernel
    return wrapper  # type: ignore[no-any-return]


def bind(monkeypatch: pytest.MonkeyPatch, name: str, kernel: Callable[..., Any]) -> None:
    """Let transformers' Qwen3.5 call a kernel."""
    from transformers.models.qwen3_5 import modeling_qwen3_5 as module

    reference = inspect.unwrap(getattr(module, name))
    monkeypatch.setattr(module, name, wrapped_by_transformers(kernel, reference))


def by_what(model: nn.Module) -> dict[str, Bound]:
    return {bound.what: bound for bound in bound_kernels(model)}


def test_without_packages_the_reference_is_bound_for_all() -> None:
    found = by_what(tiny_qwen35())
    assert list(found) == list(NAMES)
    assert {bound.package for bound in found.values()} == {REFERENCE}
    assert type(found["gated delta rule"].module).__name__ == "Qwen3_5GatedDeltaNet"


def test_a_model_without_such_layers_has_none() -> None:
    from transformers import AutoModelForCausalLM

    assert bound_kernels(AutoModelForCausalLM.from_config(make_config("llama"))) == []


def test_the_function_that_a_forward_pass_reaches_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model, called = tiny_qwen35(), []
    from transformers.models.qwen3_5 import modeling_qwen3_5 as module

    reference = inspect.unwrap(module.torch_chunk_gated_delta_rule)

    def run(*args: Any, **kwargs: Any) -> Any:
        called.append(len(args))
        return reference(*args, **kwargs)

    bind(monkeypatch, "torch_chunk_gated_delta_rule", kernel_of("fla", run))
    found = by_what(model)
    assert found["gated delta rule"].package == "fla"
    assert found["gated delta rule of one token"].package == REFERENCE
    model(torch.ones(1, 5, dtype=torch.long))
    assert called  # the wrapper that was read is the one that runs


def test_wrappers_are_followed_to_the_end() -> None:
    def reference() -> None: ...

    kernel = kernel_of("fla")
    wrapped = wrapped_by_transformers(kernel, reference)

    @functools.wraps(wrapped, updated=())
    def adapter(*args: Any) -> Any:  # as unsloth's block compilation makes them
        return wrapped(*args)

    for outer in (adapter, torch.compiler.disable(adapter), functools.partial(adapter, 1)):
        assert innermost(outer) is kernel
        assert package_of(outer) == "fla"
    assert package_of(wrapped_by_transformers(inspect.unwrap(nn.Linear.forward), reference)) == REFERENCE


def test_a_function_on_the_module_is_found_too() -> None:
    """Older versions of transformers hang it there."""

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.chunk_gated_delta_rule = kernel_of("fla")

        def forward(self, x: Any) -> Any:
            return self.chunk_gated_delta_rule(x)

    assert [(b.what, b.package) for b in bound_kernels(nn.Sequential(Mixer()))] == [("gated delta rule", "fla")]
