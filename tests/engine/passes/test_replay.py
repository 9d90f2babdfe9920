"""CUDA graphs need a GPU. Here a tape stands for one: it holds the operations of a step and runs them again."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from sdft_cli.config import load_train_config  # noqa: E402
from sdft_cli.engine.kernels.halves import reads_halves  # noqa: E402
from sdft_cli.engine.passes.decode import generate, left_padded  # noqa: E402
from sdft_cli.engine.passes.decode_steps import FixedStep, Sampling, decode_in_steps  # noqa: E402
from sdft_cli.engine.passes.replay import WARM, Replay, runner_of  # noqa: E402
from sdft_cli.engine.passes.start_check import answering_weights, choose_decoding, steps_trouble  # noqa: E402
from sdft_cli.engine.train.rollouts import choose_sampling_weights  # noqa: E402
from tests.engine.trees import PROMPTS, as_stored, make  # noqa: E402

GREEDY = Sampling(None, 1.0, (), 0)


class Tape(TorchDispatchMode):
    """Operations with the very tensors that they read and wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out

    def run(self) -> None:
        """Run them again: what they made lies where it lay."""
        for func, args, kwargs, out in self.operations:
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def tape(step: Any) -> Any:
    """Like `cuda_graph`, but for that it runs the step once; so the first replay is that run."""
    recorded = Tape()
    with recorded:
        logits = step()
    ran = [True]

    def replay() -> Any:
        if not ran.pop():
            recorded.run()
        ran.append(False)
        return logits

    return replay


def nothing_waits() -> Iterator[list[str]]:
    yield []


@torch.no_grad()
def decoded(backend: Any, runner: Any, sampling: Sampling = GREEDY, new: int = 30) -> Any:
    ids, mask = left_padded(PROMPTS, 0)
    return decode_in_steps(backend, PROMPTS, ids, mask, new, sampling, runner, record_log_probs=True)


@pytest.mark.parametrize(("kind", "sharing"), [("llama", "packed"), ("hybrid", "none"), ("hybrid", "depth_first")])
def test_steps_that_are_replayed_decode_what_steps_decode(kind: str, sharing: Any) -> None:
    backend = make(kind)
    backend.sharing = sharing
    calls: list[Replay] = []

    def replayed(step: FixedStep) -> Replay:
        calls.append(Replay(step, tape, nothing_waits))
        return calls[-1]

    for sampling in (GREEDY, Sampling(0.8, 0.95, (5, 6, 7), 0, range(len(PROMPTS)))):
        tokens, logs = decoded(backend, replayed, sampling)
        expected, expected_logs = decoded(backend, lambda step: step, sampling)
        assert torch.equal(tokens, expected)
        assert torch.allclose(logs, expected_logs, atol=1e-6)
        assert calls[-1].replay is not None
        assert calls[-1].ran == WARM
        assert calls[-1].trouble is None


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("capture", r"\(capture failed: operation not permitted when stream is capturing\)"),
        ("waits", r"\(its forward pass waits for the GPU: modeling.py, line 7\)"),
        ("moves", r"\(its cache is not written in place\)"),
    ],
)
def test_a_step_that_cannot_be_a_graph_goes_on_as_it_is_and_the_run_says_so(trouble: str, said: str) -> None:
    backend = make("llama")
    backend.decoder = "fixed"

    def capture(step: Any) -> Any:
        assert trouble == "capture"
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    def waits() -> Iterator[list[str]]:
        yield (seen := [])
        seen += ["modeling.py, line 7"] * (trouble == "waits")

    def runner(step: FixedStep) -> Any:
        if trouble == "moves":
            for layer in step.cache.layers:
                layer.update = lambda k, v, *_, layer=layer: moved(layer, k, v)
        return Replay(step, capture, waits)

    def moved(layer: Any, keys: Any, values: Any) -> Any:
        found = type(layer).update(layer, keys, values)
        layer.buffers = tuple(buffer.clone() for buffer in layer.buffers)
        return found

    expected = decoded(backend, lambda step: step)
    with pytest.warns(RuntimeWarning, match=f"WARNING: .* a step of llama cannot be a CUDA graph {said}") as caught:
        found = decoded(backend, runner)
    assert len(caught) == 1
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert backend.decoder == "generate"


def test_memory_that_runs_out_is_no_reason_to_go_on() -> None:
    def capture(step: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    backend = make("llama")
    backend.decoder = "fixed"
    with pytest.raises(torch.OutOfMemoryError):
        decoded(backend, lambda step: Replay(step, capture, nothing_waits))
    assert backend.decoder == "fixed"


def test_without_a_gpu_a_step_runs_as_it_is_and_generate_decodes() -> None:
    backend = make("llama")
    steps: list[FixedStep] = []
    decoded(backend, lambda step: steps.append(step) or runner_of(step), new=2)  # type: ignore[func-returns-value]
    assert runner_of(steps[0]) is steps[0]
    backend.decoder = "fixed"
    assert choose_decoding(backend).startswith("Decoding: steps over a growing cache, weights ")
    assert backend.decoder == "growing"
    assert choose_decoding(backend, "off").endswith("generate (rollout.graphs is off)")


@pytest.mark.skipif(not reads_halves(), reason="this torch has no products with float16 weights")
@pytest.mark.parametrize("kind", ["llama", "hybrid"])
def test_a_base_that_was_stored_in_16_bits_is_read_so_and_keeps_its_adapter_on(kind: str) -> None:
    """The adapter, which was trained in fp32, has no say in it; a base that was stored in fp32 is packed as it is."""
    backend, settings = make(kind), load_train_config("cpu-demo").rollout
    assert choose_decoding(backend).endswith("weights packed (checked on this model)")
    assert backend.halves is None
    assert answering_weights(backend) == choose_sampling_weights(backend, settings)[0] == "merged"
    as_stored(backend)
    assert "base weights read as float16" in choose_decoding(backend)
    assert backend.halves is not None
    assert answering_weights(backend) == choose_sampling_weights(backend, settings)[0] == "adapter"
    asked = settings.model_copy(update={"weights": "merged"})
    assert choose_sampling_weights(backend, asked)[0] == "merged"
    choose_decoding(backend, "off")
    assert (backend.halves, answering_weights(backend)) == (None, "merged")


@pytest.mark.parametrize("kind", ["llama", "hybrid"])
def test_the_check_before_step_1_takes_what_decodes_what_is_scored(kind: str) -> None:
    backend = make(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert steps_trouble(backend) is None
    assert backend.decoder == "generate"


def test_the_check_refuses_a_position_that_stands_still_and_a_key_that_is_hidden(monkeypatch: Any) -> None:
    backend = make("llama")
    own = FixedStep.__call__

    def still(step: FixedStep) -> Any:
        logits = own(step)
        step.position.sub_(1)
        return logits

    def hidden(step: FixedStep) -> Any:
        step.seen[..., 3] = False
        return own(step)

    for fault in (still, hidden):
        monkeypatch.setattr(FixedStep, "__call__", fault)
        assert "differ from those of a pass by" in str(steps_trouble(backend))


def test_the_check_tells_why_a_model_fails() -> None:
    backend = make("llama")
    backend.base.config._attn_implementation = "eager"
    assert steps_trouble(backend) == "attention of type eager takes no boolean mask"
    backend = make("llama")
    layer = backend.base.model.layers[0].self_attn

    def broken(*_: Any, **settings: Any) -> Any:
        if settings.get("attention_mask") is not None and settings["attention_mask"].ndim == 4:
            raise ValueError("no such mask\nat all")
        return own(*_, **settings)

    own, layer.forward = layer.forward, broken
    assert steps_trouble(backend) == "steps of our own end in an error, ValueError: no such mask"
    assert backend.decoder == "generate"
    assert generate(backend, [[3, 4, 5]], 2, [], 0)
