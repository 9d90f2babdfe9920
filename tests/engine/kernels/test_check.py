"""Kernels that are right, wrong in one gradient, or raise, planted where a model calls them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from sdft_cli.config import load_train_config  # noqa: E402
from sdft_cli.engine.kernels import check as module  # noqa: E402
from sdft_cli.engine.kernels.agreement import FACTOR, Agreement, compared, reference_of  # noqa: E402
from sdft_cli.engine.kernels.bound import CHUNKS, NAMES, ONE_TOKEN, bound_kernels  # noqa: E402
from sdft_cli.engine.kernels.check import check_kernels  # noqa: E402
from sdft_cli.engine.models.load import load_backend, open_for_eval  # noqa: E402
from sdft_cli.errors import WARNING, MachineError  # noqa: E402
from tests.engine.kernels.test_bound import bind, kernel_of  # noqa: E402
from tests.engine.models.test_adapters import tiny_qwen35  # noqa: E402

CPU = torch.device("cpu")


def token_by_token(query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, **given: Any) -> Any:
    """The gated delta rule by its definition, in fp32: S <- exp(g) S; S <- S + k (beta (v - k S)); o = q S."""
    query, key, value = (x.float() for x in (query, key, value))
    query, key = (x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt() for x in (query, key))
    query, state, out = query * query.shape[-1] ** -0.5, given["initial_state"].float(), []
    for t in range(query.shape[1]):
        state = state * g[:, t].float().exp()[..., None, None]
        delta = beta[:, t, :, None].float() * (value[:, t] - torch.einsum("bhk,bhkv->bhv", key[:, t], state))
        state = state + torch.einsum("bhk,bhv->bhkv", key[:, t], delta)
        out.append(torch.einsum("bhk,bhkv->bhv", query[:, t], state))
    return torch.stack(out, 1).to(torch.bfloat16), state


class Scaled(torch.autograd.Function):
    """The same value with a gradient that is off by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad * ctx.factor, None


class Raising(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise RuntimeError("Triton >= 3.4.0 on Hopper GPUs\nand so on")


INPUTS = ("query", "key", "value", "g", "beta", "initial_state")


def with_gradient_of(which: str, factor: float) -> Callable[..., Any]:
    """The right values, and one input's gradient scaled."""

    def run(*args: Any, **given: Any) -> Any:
        own = dict(zip(INPUTS, args, strict=False)) | given
        own[which] = Scaled.apply(own[which], factor)
        return token_by_token(**own)

    return run


def test_the_reference_is_not_compared_and_is_told() -> None:
    told = check_kernels(tiny_qwen35(), CPU)
    assert told == (
        "Kernels: transformers' reference for gated delta rule, gated delta rule of one token, causal convolution, "
        "causal convolution of one token; attention by sdpa"
    )


def test_a_model_without_such_layers_has_nothing_to_tell(tiny_model: Path) -> None:
    assert open_for_eval(str(tiny_model), "float32", None, None).kernels is None


def test_a_right_kernel_passes_and_its_distance_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    bind(monkeypatch, "torch_chunk_gated_delta_rule", kernel_of("fla", token_by_token))
    told = check_kernels(tiny_qwen35(), CPU)
    assert told is not None
    assert told.startswith("Kernels: fla-core for gated delta rule (off by 0.00")


@pytest.mark.parametrize("which", INPUTS)
def test_a_gradient_of_any_input_that_is_off_by_a_twentieth_is_refused(
    which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bind(monkeypatch, "torch_chunk_gated_delta_rule", kernel_of("fla", with_gradient_of(which, 1.05)))
    name = {"g": "decay", "initial_state": "state"}.get(which, which)
    with pytest.raises(
        MachineError, match=rf"disagrees .*gradient of {name} by 0\.0[45].*pip install 'sdft-cli\[gpu\]'"
    ):
        check_kernels(tiny_qwen35(), CPU)


def test_a_kernel_that_ignores_the_state_before_it_or_returns_nothing_finite_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forgets(*args: Any, **given: Any) -> Any:
        return token_by_token(*args, **{**given, "initial_state": given["initial_state"] * 0})

    def breaks(*args: Any, **given: Any) -> Any:
        out, state = token_by_token(*args, **given)
        return out * torch.nan, state

    model = tiny_qwen35()
    for run in (forgets, breaks):
        for name in ("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"):
            with monkeypatch.context() as patch:
                bind(patch, name, kernel_of("fla", run))
                with pytest.raises(MachineError, match="disagrees"):
                    check_kernels(model, CPU)


def test_a_backward_pass_that_raises_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(query: Tensor, *args: Any, **given: Any) -> Any:
        return token_by_token(Raising.apply(query), *args, **given)

    bind(monkeypatch, "torch_chunk_gated_delta_rule", kernel_of("fla", run))
    with pytest.raises(MachineError, match=r"raises RuntimeError .*Triton >= 3.4.0 on Hopper GPUs\): pip install"):
        check_kernels(tiny_qwen35(), CPU)


@pytest.mark.parametrize("name", ["causal_conv1d_fn", "causal_conv1d_update"])
def test_a_convolution_is_compared_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.qwen3_5 import modeling_qwen3_5

    own = inspect.unwrap(getattr(modeling_qwen3_5, name))
    with monkeypatch.context() as patch:
        bind(patch, name, kernel_of("causal_conv1d", own))
        check_kernels(tiny_qwen35(), CPU)
    bind(monkeypatch, name, kernel_of("causal_conv1d", lambda *args, **given: own(*args, **given) * 1.2))
    with pytest.raises(MachineError, match=r"kernel of causal-conv1d for causal convolution.* disagrees"):
        check_kernels(tiny_qwen35(), CPU)


def test_every_function_has_a_reference_that_agrees_with_itself_as_rounding() -> None:
    bound = bound_kernels(tiny_qwen35())
    assert [b.what for b in bound] == list(NAMES)
    for one in bound:
        found = compared(one, CPU)
        assert found.holds
        assert max(found.distances.values()) == found.floor < 0.02
        assert inspect.unwrap(reference_of(one.what)).__module__.startswith("transformers")


def test_the_reference_in_bf16_is_compared_with_the_definition() -> None:
    """The reference that all is measured by is the formula: 64 tokens at a time, or one by one."""
    (chunks,) = (b for b in bound_kernels(tiny_qwen35()) if b.what == CHUNKS)
    for what in (CHUNKS, ONE_TOKEN):
        found = compared(type(chunks)(what, "fla", token_by_token, chunks.module), CPU)
        assert found.holds


def test_what_counts_as_disagreement() -> None:
    assert Agreement({"a": FACTOR * 0.003, "b": 0.0}, 0.003).holds
    assert not Agreement({"a": FACTOR * 0.0031, "b": 0.0}, 0.003).holds
    assert Agreement({"a": 0.0, "b": float("nan"), "c": 1.0}, 0.003).worst == "b"


def test_the_reference_on_a_gpu_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    told = check_kernels(tiny_qwen35(), torch.device("cuda"))  # nothing is run: the reference is not compared
    assert told is not None
    assert told.startswith(WARNING)
    assert "about ten times slower" in told
    assert "pip install 'sdft-cli[gpu]'" in told


def test_a_known_trap_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdft_cli.engine.kernels.traps import Stack

    bind(monkeypatch, "torch_chunk_gated_delta_rule", kernel_of("fla"))  # which fails if it is called
    monkeypatch.setattr(module, "stack_of", lambda device: Stack(9, "0.6.0", "3.6.0"))
    with pytest.raises(MachineError, match=r"fla-core 0\.6\.0 with triton 3\.6\.0 raises"):
        check_kernels(tiny_qwen35(), torch.device("cuda"))


def test_loading_makes_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_qwen35().save_pretrained(tmp_path)
    targets = "lora.target_modules=[q_proj, in_proj_qkv]"
    config = load_train_config("cpu-demo", ["lora.rank=2", "lora.alpha=2", targets])
    told = load_backend(config, "transformers", str(tmp_path)).kernels
    assert told is not None
    assert told.startswith("Kernels: transformers' reference for gated delta rule")
    bind(monkeypatch, "torch_chunk_gated_delta_rule", kernel_of("fla", with_gradient_of("beta", 1.05)))
    with pytest.raises(MachineError, match="gradient of beta"):
        load_backend(config, "transformers", str(tmp_path))
    with pytest.raises(MachineError, match="gradient of beta"):
        open_for_eval(str(tmp_path), "float32", None, None)
