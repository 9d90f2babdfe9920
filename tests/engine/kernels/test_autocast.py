"""Autocast, as passes have it on a GPU, forced on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.config import load_train_config  # noqa: E402
from sdft_cli.engine.kernels.autocast import autocast_passes, leave_inputs, needs_autocast  # noqa: E402
from sdft_cli.engine.models.adapters import EmaAdapter, lora_layers, weights  # noqa: E402
from sdft_cli.engine.models.backend import Backend  # noqa: E402
from sdft_cli.engine.models.backend_transformers import PlainModel, TransformersBackend  # noqa: E402
from sdft_cli.engine.models.load import load_backend, open_for_eval  # noqa: E402
from sdft_cli.engine.models.modes import train_adapter_only  # noqa: E402
from sdft_cli.engine.objective.loss import token_log_likelihood  # noqa: E402
from sdft_cli.engine.passes.decode import generate  # noqa: E402
from sdft_cli.engine.passes.executors import answer_states, student_passes  # noqa: E402
from sdft_cli.engine.passes.padded import padded_states  # noqa: E402
from sdft_cli.engine.train.rollouts import sampler_gap  # noqa: E402
from tests.engine.models.families import SETTINGS, make_model  # noqa: E402
from tests.engine.trees import ANSWERS, KINDS, PROMPTS, error, go_back, gradient, independent, leaf_loss, make  # noqa: E402

BF16 = torch.bfloat16
WAYS = ["none", "packed", "depth_first"]
CASES = [(kind, way) for kind in KINDS for way in WAYS if way != "packed" or kind in ("llama", "qwen3")]


def small(kind: str, dtype: Any = BF16) -> Backend:
    """A tiny model with an adapter that moves it less than it is."""
    backend = make(kind, dtype)
    for p in backend.parameters():
        p.data *= 0.4
    return backend


def cast(backend: Backend) -> Backend:
    """Let a backend run as one does that was loaded on a GPU."""
    autocast_passes(backend.base, BF16)
    leave_inputs(backend.model)
    return backend


def step_loss(turns: Sequence[int], states: Any) -> Any:
    parts = states.float().split([len(ANSWERS[i]) for i in turns])
    return sum((leaf_loss(i, part) for i, part in zip(turns, parts, strict=True)), torch.zeros(()))


def step(backend: Backend, way: Any) -> Any:
    backend.sharing, backend.segment_tokens = way, 16
    return gradient(backend, lambda: go_back(student_passes(backend, PROMPTS, ANSWERS, 0, 400), step_loss))


@pytest.mark.parametrize(("kind", "way"), CASES)
def test_a_step_is_about_as_far_from_fp32_as_without(kind: str, way: str) -> None:
    exact = independent(small(kind, torch.float32), PROMPTS, ANSWERS)
    plain, found = step(small(kind), way), step(cast(small(kind)), way)
    assert not torch.equal(found, plain)
    assert found.dtype == torch.float32  # what the optimiser gets, and what segments are summed in
    assert error(found, exact) <= 1.5 * error(plain, exact)


def test_an_adapted_matrix_is_two_products_of_16_bit_factors() -> None:
    """Bit for bit by hand; the adapter's own weights stay in fp32."""
    backend = cast(small("llama"))
    layer = next(iter(lora_layers(backend.model).values()))
    seen: list[Any] = []
    hook = layer.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    with torch.no_grad():
        padded_states(backend, [PROMPTS[0]], 0)
    hook.remove()
    ((x, y),) = seen
    a, b = (part["default"].weight for part in (layer.lora_A, layer.lora_B))
    assert (a.dtype, b.dtype, x.dtype, y.dtype) == (torch.float32, torch.float32, BF16, BF16)
    base, rows = layer.get_base_layer().weight, x[0]
    expected = rows @ base.T + (rows @ a.to(BF16).T) @ b.to(BF16).T * layer.scaling["default"]
    assert torch.equal(y[0], expected)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_no_copy_of_an_adapted_input_is_kept(kind: str) -> None:
    """What a pass saves in fp32 is what it saves without any adapter: the copies that norms make."""

    def saved(backend: Backend) -> tuple[int, int]:
        own = {p.untyped_storage().data_ptr() for p in backend.model.parameters()}
        held: dict[int, Any] = {}

        def pack(x: Any) -> Any:
            if x.untyped_storage().data_ptr() not in own:
                held[x.untyped_storage().data_ptr()] = x
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            padded_states(backend, [PROMPTS[1]], 0)
        wide = [x for x in held.values() if x.dtype == torch.float32 and x.numel() >= 32 * len(PROMPTS[1])]
        return sum(x.nbytes for x in wide), sum(x.untyped_storage().nbytes() for x in held.values())

    plain, found = saved(small(kind)), saved(cast(small(kind)))
    alone = small(kind)
    for p in alone.parameters():
        p.requires_grad_(False)
    alone.model.enable_input_require_grads()
    with alone.model.disable_adapter():
        without = saved(alone)
    assert found[0] <= without[0] < plain[0] / 1.5
    assert found[1] < 0.7 * plain[1]


@pytest.mark.parametrize("kind", ["llama", "hybrid"])
def test_what_checkpointing_repeats_is_under_autocast_too(kind: str) -> None:
    found = []
    for checkpointing in (False, True):
        backend = cast(small(kind))
        if checkpointing:
            backend.model.enable_input_require_grads()
            backend.base.gradient_checkpointing_enable({"use_reentrant": False})
            train_adapter_only(backend.model)
        found.append(step(backend, "none"))
    assert torch.equal(*found)


def test_weights_that_change_and_gradients_that_come_and_go_are_seen() -> None:
    """Autocast's own cache of casts would keep the old weights, and casts made without gradient, within one region."""
    backend = cast(small("llama"))
    with torch.autocast("cpu", dtype=BF16):  # somebody's region around all, with a cache
        with torch.no_grad():
            before = padded_states(backend, [PROMPTS[0]], 0)[0]
        first = step(backend, "depth_first")
        assert first.norm() > 0
        ema = EmaAdapter(backend.model, 0.5)
        with torch.no_grad():
            for layer in lora_layers(backend.model).values():
                layer.lora_B["default"].weight.mul_(-1)
            after = padded_states(backend, [PROMPTS[0]], 0)[0]
        with weights(backend.model, "ema", ema):
            averaged = padded_states(backend, [PROMPTS[0]], 0)[0]
    assert torch.equal(averaged, before)
    assert error(after.float(), before.float()) > 0.05
    assert torch.equal(first, step(cast(small("llama")), "depth_first"))


@pytest.mark.parametrize(("kind", "way"), [case for case in CASES if case[0] != "multimodal"])
@pytest.mark.parametrize("case", ["adapter", "merged"])
def test_what_is_sampled_is_what_is_trained(kind: str, way: Any, case: Any) -> None:
    """Recorded log-probabilities against a pass over the answer: no further apart than without autocast, up to half."""
    gaps = []
    for backend in (small(kind), cast(small(kind))):
        backend.sharing, backend.segment_tokens = way, 16
        prompts = PROMPTS[:4]
        with weights(backend.model, case):
            rollouts = generate(backend, prompts, 8, [], 0, record_log_probs=True)
        answers = [rollout.ids for rollout in rollouts]
        with torch.no_grad():
            states = answer_states(backend, prompts, answers, 0)
        scored = token_log_likelihood(states, backend.head, torch.tensor([x for ids in answers for x in ids]))
        gaps.append(sampler_gap(rollouts, scored)["sampler_gap"])
    assert gaps[1] <= 1.5 * gaps[0] + 0.002


@pytest.mark.parametrize("family", SETTINGS)
def test_every_family_runs_whole_and_its_trunk_alone(family: str) -> None:
    backend = TransformersBackend(PlainModel(make_model(family).to(BF16)).eval(), torch.device("cpu"))
    inputs = {"input_ids": torch.tensor([[5, 9, 7, 11]]), "use_cache": False}
    with torch.no_grad():
        before = backend.full_pass(**inputs).logits
        autocast_passes(backend.base, BF16)
        logits = backend.full_pass(**inputs).logits
        states = backend.trunk_pass(**inputs).last_hidden_state
    assert error(logits.float(), before.float()) < 0.05
    assert error(backend.head.logits(states[0]), logits[0].float()) < 0.02


def test_it_is_for_16_bits_on_a_gpu_alone(tiny_model: Path, tmp_path: Path) -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert [needs_autocast(d, cuda) for d in (BF16, torch.float16, torch.float32)] == [True, True, False]
    assert not needs_autocast(BF16, cpu)
    config = load_train_config("cpu-demo", ["dtype=bfloat16"])
    backend = load_backend(config, "transformers", str(tiny_model))
    backend.save_adapter(tmp_path)
    for found in (backend, open_for_eval(str(tiny_model), "bfloat16", None, tmp_path)):
        assert "forward" not in {**vars(found.base), **vars(found.trunk)}
        assert all(layer.cast_input_dtype_enabled for layer in lora_layers(found.model).values())
